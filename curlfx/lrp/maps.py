"""Relevance maps: how much every pixel, and every element inside the network, speaks for a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.errors import DataError, UsageError
from curlfx.graph import TracedModel
from curlfx.lrp.call import Flow, Rule, RuleName, Settings, Treatment
from curlfx.lrp.propagate import Ledger, Propagation


@dataclass(frozen=True)
class Conservation:
    """Sums of relevance over all images: what was put in at the logits, and where it is.

    Attributes:
        seed: At the logits.
        scale: Sizes at the logits, summed; what errors are relative to.
        maps: At the images.
        absorbed: By node: what constants got (class tokens, a layer's bias behind nothing but zeros); by op what the
            numbers got that it fills in (padding, masks).
        change: By node: what its inputs got less what it had, where that is more than rounding.
        cuts: By node: all that crosses the cut through the graph in front of it, absorbed relevance included.
    """

    seed: float
    scale: float
    maps: float
    absorbed: Mapping[str, float]
    change: Mapping[str, float]
    cuts: Mapping[str, float]

    @property
    def error(self) -> float:
        """Largest difference between a cut and the seed, relative to the sizes of the seed."""
        scale = max(self.scale, 1e-300)
        return max((abs(crossing - self.seed) / scale for crossing in self.cuts.values()), default=0.0)


class Relevance:
    """What `relevance` found.

    Attributes:
        maps: Relevance of the images, of their shape.
        logits: What the network says of the images ``(N, C, *S)``.
        classes: The classes that were asked for ``(N,)`` or ``(N, *S)``; None where a seed was given.
        clips: By node: elements of sums that cancelled, see `curlfx.lrp.distribute.proportional`.
    """

    def __init__(
        self, maps: Tensor, logits: Tensor, classes: Tensor | None, inside: Mapping[str, Flow], ledger: Ledger
    ) -> None:
        self.maps, self.logits, self.classes = maps, logits, classes
        self.clips: Mapping[str, int] = dict(ledger.clips)
        self._inside, self._ledger = inside, ledger

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that relevance passed, from the logits to the images."""
        return tuple(self._inside)

    def at(self, node: str) -> Tensor:
        """Relevance of a node's output, of its shape.

        Raises: UsageError for a node that relevance did not pass, or one with several outputs.
        """
        found = self._inside.get(node)
        if not isinstance(found, Tensor):
            several = "has several outputs; ask for its getitem" if node in self._inside else "got no relevance"
            raise UsageError(f"at('{node}'): this node {several}; curlfx.show prints the graph, .nodes the names")
        return found

    def conservation(self) -> Conservation:
        """What was put in and where it is; in float64 the cuts of a network are equal but for rounding."""
        ledger = self._ledger
        least = 1e-6 * max(ledger.scale, 1e-300)
        change = {name: amount for name, amount in ledger.change.items() if abs(amount) > least}
        total = float(self.maps.sum(dtype=torch.float64))
        return Conservation(ledger.seed, ledger.scale, total, dict(ledger.absorbed), change, dict(ledger.cuts))


def relevance(
    traced: TracedModel,
    x: Tensor,
    y: Tensor | None = None,
    *,
    rule: RuleName = "alpha-beta",
    alpha: float = 2.0,
    beta: float = 1.0,
    epsilon: float = 1e-6,
    batch_norm: Treatment = "auto",
    seed: Tensor | None = None,
    rules: Mapping[Any, Rule] | None = None,
) -> Relevance:
    """Layer-wise relevance propagation: how much each pixel speaks for a class.

    Relevance 1 is put on the logit of the class (before a final softmax or sigmoid) and handed back through the graph
    to the pixels; every op keeps the sum. The network is left exactly as it was. Memory: as one forward pass that keeps
    all values.

    Args:
        traced: The network; in evaluation mode here whatever its own.
        x: Images ``(N, C, H, W)``, in floating point.
        y: Class of each image ``(N,)``, or of each pixel ``(N, *S)`` of a dense prediction; default: what the network
            predicts. Where pixels have logits of their own, each gets an equal share of the 1.
        rule: ``alpha-beta`` or ``epsilon``, for sums of products.
        alpha: Weight of what raises an output.
        beta: Weight of what lowers it; ``alpha - beta`` is 1.
        epsilon: Of the epsilon rule.
        batch_norm: ``identity`` hands relevance through batch normalisation as it is; ``fold`` merges it into the layer
            before, where that has no other reader; ``auto`` is ``fold`` for the epsilon rule, else ``identity``.
        seed: Relevance of the logits, of their shape, in place of ``y``.
        rules: Rules for ops of one's own, by ``OpOverload`` or by name such as ``"aten::softmax"``; they come first.

    Raises: ConfigError for settings that conserve nothing; DataError for images or classes that do not fit; ModelError
        for an op without a rule, with its line in the user's code, or relevance that is no number any more.
    Source: Bach et al. 2015 (doi:10.1371/journal.pone.0130140); rules per op in docs/relevance.md.
    """
    network = Propagation(traced, Settings(rule, alpha, beta, epsilon, batch_norm), rules)
    values = network.forward(x)
    logits: Tensor = values[network.logits]
    classes = None
    if seed is None:
        classes = classes_of(logits, y)
        seed = one_hot(logits, classes)
    elif y is not None:
        raise UsageError("y and seed say the same thing in two ways: give one of them")
    elif seed.shape != logits.shape:
        raise DataError(f"seed is {tuple(seed.shape)}, want the shape of the logits {tuple(logits.shape)}")
    inside: dict[str, Flow] = {}

    def keep(node: Node, found: Flow) -> None:
        inside[node.name] = found

    ledger = network.backward(values, seed.to(logits), keep)
    maps = inside[network.input.name]
    assert isinstance(maps, Tensor)  # noqa: S101 - an input is one tensor
    return Relevance(maps, logits, classes, inside, ledger)


def classes_of(logits: Tensor, given: Tensor | None) -> Tensor:
    """The classes that relevance is asked for: those given, or the most likely ones.

    Shapes: logits ``(N, C, *S)``; given ``(N,)`` or ``(N, *S)``; result likewise.
    Raises: DataError when they do not fit.
    """
    if logits.ndim < 2:
        raise DataError(f"the logits are {tuple(logits.shape)}: want (images, classes, …)")
    if given is None:
        return logits.argmax(1)
    fits = given.shape in (logits.shape[:1], (len(logits), *logits.shape[2:])) and not given.is_floating_point()
    if not fits or bool(((given < 0) | (given >= logits.shape[1])).any()):
        raise DataError(
            f"classes {tuple(given.shape)} of {given.dtype} do not fit the logits {tuple(logits.shape)}: want one of 0 "
            f"to {logits.shape[1] - 1} for every image or pixel"
        )
    return given.to(logits.device).long()


def one_hot(logits: Tensor, classes: Tensor) -> Tensor:
    """Relevance of the logits: 1 for every image, at its class, pixels sharing it equally.

    Shapes: logits and result ``(N, C, *S)``; classes ``(N,)`` or ``(N, *S)``.
    """
    pixels = logits[0, 0].numel()
    index = classes.reshape(len(logits), *[1] * (logits.ndim - 2)) if classes.ndim == 1 else classes
    index = index.expand(len(logits), *logits.shape[2:]).unsqueeze(1)
    return torch.zeros_like(logits).scatter_(1, index, 1 / pixels)
