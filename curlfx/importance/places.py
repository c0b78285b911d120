"""Where relevance is read off: layers and sums whose output has coupled channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Node

from curlfx.cost.macs import batch_size
from curlfx.coupling import Coupling
from curlfx.coupling.vectors import Ints
from curlfx.errors import InvariantError
from curlfx.graph import TracedModel
from curlfx.lrp.call import Flow
from curlfx.lrp.gating import op_name
from curlfx.lrp.propagate import Propagation
from curlfx.lrp.table import RULES

Bools = npt.NDArray[np.bool_]
_SUMS = frozenset({"add", "sub", "subtract", "rsub"})
_LAYERS = frozenset(name for name, rule in RULES.items() if rule in (RULES["linear"], RULES["addmm"]))


@dataclass
class Place:
    """A layer or sum whose output has channels, by one array of their numbers.

    Attributes:
        node: Its name.
        axes: Axes along which the numbers vary.
        numbers: The channels, ascending, ``(C,)``.
        position: Which of them each element along the axes is, ``len(numbers)`` for one that stays.
        counts: How many elements each has ``(C,)``.
        is_sum: Whether it is a sum, not a layer.
        merged: The batch is no axis of its own.
        reached: Which of them relevance can get to here ``(C,)``.
        sums: By class, relevance summed over images ``(C,)``.
    """

    node: str
    axes: tuple[int, ...]
    numbers: Ints
    position: Tensor
    counts: Tensor
    is_sum: bool
    merged: bool
    reached: Bools
    sums: dict[int, Tensor] = field(default_factory=dict)

    def of_channels(self, relevance: Tensor) -> Tensor:
        """Means over positions, for each entry of the batch axis; shape ``(B, C)``, float64."""
        others = [axis for axis in range(1, relevance.ndim) if axis not in self.axes]
        each = relevance.double().mean(others) if others else relevance.double()
        result = each.new_zeros(len(relevance), self.numbers.size + 1)
        result.index_add_(1, self.position, each.reshape(len(relevance), -1))
        return result[:, :-1] / self.counts

    @property
    def heard(self) -> Bools:
        """Which of its channels relevance can get to here, or did ``(C,)``."""
        got = [(row != 0).cpu().numpy() for row in self.sums.values()]
        heard: Bools = np.logical_or.reduce([self.reached, *got])
        return heard

    def add(self, label: int, relevance: Tensor) -> None:
        """Add the relevance ``(C,)`` of images of a class."""
        self.sums[label] = self.sums[label] + relevance if label in self.sums else relevance


def find_places(traced: TracedModel, coupling: Coupling, network: Propagation) -> list[Place]:
    """Where channels can be looked at: layers with weights, and sums of two tensors that depend on the images."""
    found: list[tuple[Node, Ints, bool]] = []
    for node in network.nodes:
        name = op_name(node)
        both = len({source for source in node.all_input_nodes if network.is_live(source)}) > 1
        if not network.is_live(node) or not (name in _LAYERS or (name in _SUMS and both)):
            continue
        arrays = coupling.channels_in(coupling.labels(node.name))
        shaped = [array for array in arrays if array.ndim == node.meta["val"].ndim and array.shape[0] == 1]
        found.extend((node, array, name in _SUMS) for array in shaped)
    size = batch_size(traced)
    return [_place(node, array, is_sum, size, network.device) for node, array, is_sum in found]


def tied_by_sums(places: Sequence[Place], total: int) -> Bools:
    """Channels that a sum ties which relevance gets to ``(N + 1,)``: a sum inside a gate (CBAM) ties none.

    Args:
        places: With all relevance that they got.
        total: Number of channels N.
    """
    tied = np.zeros(total + 1, np.bool_)
    for place in places:
        if place.is_sum:
            tied[place.numbers[place.heard]] = True
    return tied


def _place(node: Node, array: Ints, is_sum: bool, size: int, device: torch.device) -> Place:
    numbers = np.unique(array[array > 0])
    position = np.where(array > 0, np.searchsorted(numbers, array), numbers.size).reshape(-1)
    counts = np.bincount(position, minlength=numbers.size + 1)[:-1]
    return Place(
        node.name,
        tuple(axis for axis, length in enumerate(array.shape) if length > 1),
        numbers,
        torch.from_numpy(position).to(device),
        torch.from_numpy(counts).to(device),
        is_sum,
        node.meta["val"].shape[0] != size,
        np.zeros(numbers.size, np.bool_),
    )


def note_reached(network: Propagation, images: Tensor, places: Sequence[Place]) -> None:
    """Mark the channels that relevance gets to, whatever its amount: not queries and keys, nor what makes a gate.

    Args:
        network: With ``Settings.reach``.
        images: Some that the network takes.
        places: Where to look.
    """
    values = network.forward(images)
    by_name = by_node(places)

    def visit(node: Node, relevance: Flow) -> None:
        for place in by_name.get(node.name, ()):
            place.reached |= (place.of_channels(of_one_output(relevance)) > 0).any(0).cpu().numpy()

    network.backward(values, torch.ones_like(values[network.logits]), visit)


def by_node(places: Sequence[Place]) -> dict[str, list[Place]]:
    """The places by the node that they are at."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.node, []).append(place)
    return found


def of_one_output(relevance: Flow) -> Tensor:
    """The relevance of a node with one output, as layers and sums are."""
    if not isinstance(relevance, Tensor):
        raise InvariantError("a layer or a sum has several outputs")
    return relevance
