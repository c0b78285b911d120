"""Feature relevance: how much of the class that an image is of flows through a channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from curlfx.coupling import GroupId
from curlfx.errors import ConfigError, DataError
from curlfx.importance.places import Bools, Place, by_node, find_places, note_reached, of_one_output, tied_by_sums
from curlfx.importance.request import Request
from curlfx.importance.scores import Values
from curlfx.lrp.call import PAPER, Flow, Rule, Settings
from curlfx.lrp.maps import classes_of, one_hot
from curlfx.lrp.propagate import Propagation
from curlfx.progress import StepEvent, StepTimer

Policy = Literal["tied", "inner"]
KEPT = 2.0
"""Score of channels that go last, when nothing else is left: above all others, which are at most 1."""
_LEAST_ACCURACY = 1e-3
_LEAST_NORM = 1e-9
_MEMORY = 512 << 20


def feature_relevance(
    request: Request,
    *,
    settings: Settings = PAPER,
    policy: Policy = "tied",
    class_weights: bool = True,
    rules: Mapping[Any, Rule] | None = None,
) -> dict[GroupId, Values]:
    """Relevance of a channel for the right class, weak classes counting more, per layer relative to its others.

    Relevance 1 on the logit of each image's class is handed back through the network (`curlfx.relevance`). A channel's
    is the mean over positions, at the output of the layer that makes it or, for channels that residual sums tie, behind
    each sum. Means over the images of a class are weighted by ``sigmoid(best accuracy / accuracy)`` of that class on
    these very images; the absolute value of the mean over classes, divided by the L2 norm over the layer, is the
    score, averaged over the places where the channel is looked at.

    Classes are those in the data, else those that the network predicts; of dense predictions all images are one class.
    Work: about five passes forwards and as many backwards where activations are positive, nine where they are not.

    Args:
        request: What is asked.
        settings: Of relevance propagation.
        policy: ``inner`` gives channels that residual sums tie `KEPT`, so that they go last, when nothing else is left;
            freeze them to keep them, as the paper does.
        class_weights: Whether weak classes count more.
        rules: Rules for ops of one's own.

    Channels that no relevance can reach (queries and keys, what makes a gate) get `KEPT`, too, and are counted in
    ``request.details``.

    Shapes: scores ``(width,)`` per group.
    Units: none; in [0, 1], or `KEPT`.
    Raises: ConfigError for another policy; DataError when images or classes do not fit; ModelError for an op without a
        relevance rule.
    Source: Aketi et al., Gradual Channel Pruning while Training using Feature Relevance Scores (arXiv:2002.09958),
        section 3; tied groups are our own.
    """
    if policy not in ("tied", "inner"):
        raise ConfigError(f"policy = {policy}: want tied or inner")
    coupling = request.coupling
    if not coupling.total:
        return {}
    network = Propagation(request.traced, settings, rules)
    places = find_places(request.traced, coupling, network)
    example = pytree.tree_leaves(request.traced.example_inputs)[0]
    note_reached(Propagation(request.traced, replace(settings, reach=True), rules), example, places)
    tally = _Tally()
    batches = request.proxy.count or 0
    timer = StepTimer(batches)
    alone = network.fixed_batch is not None
    for number, (images, given) in enumerate(request.proxy.labelled(network.device, network.dtype), start=1):
        for part, classes in _parts(network, images, given):
            if alone or any(place.merged for place in places):
                _one_by_one(network, part, classes, places, tally)
            else:
                _measure(network, part, classes, places, tally, None)
        if request.progress is not None:
            left = timer.seconds_left(number) if number <= batches else None
            request.progress.on_step(StepEvent("score", 0, number, max(batches, number), seconds_left=left))
    weights = tally.weights() if class_weights else dict.fromkeys(tally.images, 1.0)
    tied = tied_by_sums(places, coupling.total)
    values = _scores(places, tied, tally, weights)
    unreached = ~np.isfinite(values)
    request.details["channels_without_relevance"] = int(unreached[1:].sum())
    request.details["accuracy_permille"] = round(1000 * tally.accuracy)
    values[unreached | (tied if policy == "inner" else False)] = KEPT
    return {group.id: values[group.channels] for group in coupling.groups}


@dataclass
class _Tally:
    """How many images of each class there were, and how many of them were recognised."""

    images: dict[int, int] = field(default_factory=dict)
    right: dict[int, float] = field(default_factory=dict)

    def add(self, classes: Tensor, right: Tensor) -> None:
        """Count images of classes ``(N,)``, of which shares ``(N,)`` were recognised."""
        for label, share in zip(classes.tolist(), right.tolist(), strict=True):
            self.images[label] = self.images.get(label, 0) + 1
            self.right[label] = self.right.get(label, 0.0) + share

    @property
    def accuracy(self) -> float:
        """Over all images, in [0, 1]."""
        return sum(self.right.values()) / max(sum(self.images.values()), 1)

    def weights(self) -> dict[int, float]:
        """``sigmoid(best accuracy / accuracy)`` of each class, in [0.731, 1]."""
        accuracy = {label: max(self.right[label] / count, _LEAST_ACCURACY) for label, count in self.images.items()}
        best = max(accuracy.values())
        return {label: float(1 / (1 + np.exp(-best / own))) for label, own in accuracy.items()}


def _parts(network: Propagation, images: Tensor, given: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A batch in parts that fit into memory with all their values."""
    size = max(1, int(_MEMORY / max(network.bytes_per_image, 1)))
    parts = images.split(size)
    return zip(parts, [None] * len(parts) if given is None else given.split(size), strict=True)


def _one_by_one(
    network: Propagation, images: Tensor, given: Tensor | None, places: Sequence[Place], tally: _Tally
) -> None:
    """Where windows are laid into the batch, or only one batch size runs: which rows are whose is not asked."""
    size = network.fixed_batch or 1
    for number in range(len(images)):
        image = images[number : number + 1]
        label = None if given is None else given[number : number + 1]
        repeated = image.expand(size, *image.shape[1:])
        _measure(network, repeated, None if label is None else label.expand(size, *label.shape[1:]), places, tally, 1)


def _measure(
    network: Propagation,
    images: Tensor,
    given: Tensor | None,
    places: Sequence[Place],
    tally: _Tally,
    alone: int | None,
) -> None:
    """Add the relevance of some images to the places; ``alone``: they are one image, as often as the batch is large."""
    values = network.forward(images)
    logits: Tensor = values[network.logits]
    if len(logits) != len(images):
        raise DataError(f"the logits are {tuple(logits.shape)} for {len(images)} images: want (images, classes, …)")
    classes = classes_of(logits, given)
    right = (logits.argmax(1) == _spread(classes, logits)).double().flatten(1 if logits.ndim > 2 else 0)
    right = right.mean(1) if logits.ndim > 2 else right
    labels = classes if classes.ndim == 1 else torch.zeros(len(images), dtype=torch.long, device=classes.device)
    tally.add(labels[:alone], right[:alone])
    kinds, which = labels.unique(return_inverse=True)
    by_name = by_node(places)

    def visit(node: Node, relevance: Flow) -> None:
        for place in by_name.get(node.name, ()):
            each = place.of_channels(of_one_output(relevance))
            if alone is not None:
                totals = each.mean(0, keepdim=True)
            else:
                totals = each.new_zeros(len(kinds), each.shape[1]).index_add_(0, which, each)
            for label, row in zip(kinds.tolist(), totals, strict=True):
                place.add(label, row)

    network.backward(values, one_hot(logits, classes), visit)


def _spread(classes: Tensor, logits: Tensor) -> Tensor:
    """Classes of images for every pixel, where there are pixels."""
    shape = (len(logits), *logits.shape[2:])
    return classes.reshape(len(logits), *[1] * (logits.ndim - 2)).expand(shape) if classes.ndim == 1 else classes


def _scores(places: Sequence[Place], tied: Bools, tally: _Tally, weights: Mapping[int, float]) -> Values:
    """The score of every channel ``(N + 1,)``, NaN where no place says anything of it."""
    sums, counts = np.zeros(tied.size), np.zeros(tied.size)
    for place in places:
        if not place.sums:
            continue
        classes = torch.stack([row * (weights[label] / tally.images[label]) for label, row in place.sums.items()])
        mean = (classes.sum(0) / len(tally.images)).abs().cpu().numpy()
        score = mean / (np.linalg.norm(mean) + _LEAST_NORM)
        says = (tied[place.numbers] == place.is_sum) & place.heard
        sums[place.numbers[says]] += score[says]
        counts[place.numbers[says]] += 1
    values: Values = np.divide(sums, counts, out=np.full(tied.size, np.nan), where=counts > 0)
    return values


def inner_relevance(request: Request) -> dict[GroupId, Values]:
    """`feature_relevance` as published: channels that residual sums tie go last; freeze them to keep them all."""
    return feature_relevance(request, policy="inner")
