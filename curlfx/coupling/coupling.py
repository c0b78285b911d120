"""Coupling: which channels live and die together, which must stay and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Node

from curlfx.coupling.cells import Cells
from curlfx.coupling.keep import alive_mask
from curlfx.coupling.network import Step, network, path
from curlfx.coupling.propagate import Labelling, Unsupported
from curlfx.coupling.vectors import Ints
from curlfx.errors import InvariantError
from curlfx.graph.traced import TracedModel
from curlfx.labels.arrays import Arrays, compress
from curlfx.ops.call import Emission

GroupId = str


@dataclass(frozen=True)
class Site:
    """An axis of a parameter or buffer, by state-dict name."""

    name: str
    axis: int

    def __str__(self) -> str:
        return f"{self.name}[{self.axis}]"


@dataclass(frozen=True, eq=False)
class Group:
    """Coupled channels that occur in exactly the same sites, and so cost the same.

    Attributes:
        id: Name of the first parameter whose rows these are; ``#2``, ``#3`` where one parameter starts several groups.
        width: Number of coupled channels.
        sites: Where they occur.
        blocks: ``(width,)`` block of each channel, or None; every block keeps the same count, at least one.
        whole_blocks: These are no single channels but whole blocks of them: heads, groups of a convolution.
        statistics_change: A LayerNorm or GroupNorm averages over these channels.
        channels: ``(width,)`` global channel numbers, from 1, in position order.
    """

    id: GroupId
    width: int
    sites: tuple[Site, ...]
    blocks: Ints | None
    statistics_change: bool
    channels: Ints
    whole_blocks: bool = False


@dataclass(frozen=True)
class Frozen:
    """Channels of a layer that stay, and why.

    Attributes:
        sites: The layer's output axis.
        width: How many of its channels stay for this reason.
        reason: In words.
        node: FX node that pins them; "" where none does.
    """

    sites: tuple[Site, ...]
    width: int
    reason: str
    node: str


class Coupling:
    """Result of :func:`curlfx.couple`; a value, never changed.

    Attributes:
        groups: Free coupling groups, in order of the parameters that start them.
        frozen: What stays, with reasons.
        unsupported: Ops without a rule that labelled channels met.
        rules: The user's op rules that it was made with.
        reads: ``(node, input)`` names to axes: there the input is summed over its channels along these axes (None: over
            all of its channels); gates go there.
        total: Number of coupled channels, N; their numbers run from 1 to N, 0 means *stays*.
        cells: Which channels each number above N stands for.
        tables: Nodes with constant values that stay whole, and the axes along which their readers get a part.
    """

    def __init__(
        self,
        traced: TracedModel,
        labelling: Labelling,
        groups: tuple[Group, ...],
        frozen: tuple[Frozen, ...],
        unsupported: tuple[Unsupported, ...],
        cells: Cells,
        made: int,
    ) -> None:
        self.groups = groups
        self.frozen = frozen
        self.unsupported = unsupported
        self.rules = labelling.rules
        self.reads = _reads(labelling)
        self.tables: Mapping[str, tuple[int, ...]] = labelling.store.tables
        self.total = sum(group.width for group in groups)
        self.cells = cells
        self._made = made
        self._labelling = labelling
        self._by_id = {group.id: group for group in groups}
        self._raw: dict[str, Emission] = {node.name: value for node, value in labelling.emissions.items()}
        self._places = {node.name: node for node in traced.graph.nodes}
        self._shapes = {node.name: _shape(node) for node in traced.graph.nodes}
        self._parameters: dict[str, str] = {}
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                self._parameters.setdefault(str(node.target), node.name)
        self._cache: dict[str, tuple[Ints, ...]] = {}

    def group(self, name: GroupId) -> Group:
        """The group of that id. Raises: KeyError."""
        return self._by_id[name]

    @property
    def free_share(self) -> float:
        """Share of the channels that layers compute, counted layer by layer, that can go, in [0, 1]."""
        return 1 - sum(frozen.width for frozen in self.frozen) / self._made if self._made else 0.0

    def labels(self, node: str) -> tuple[Ints, ...]:
        """Cell numbers of a node's output: arrays broadcastable to its shape, without those that only say *stays*.

        An element disappears when any of its cells does, a cell when any of its channels does (``cells``).
        () for calls with several outputs (see their ``getitem``).
        """
        if node not in self._cache:
            emission = self._raw.get(node, ())
            arrays: Arrays = emission if isinstance(emission, tuple) else ()
            self._cache[node] = tuple(self._numbered(arrays))
        return self._cache[node]

    def part_labels(self, node: str, count: int) -> list[tuple[Ints, ...]]:
        """As :meth:`labels`, for each of the ``count`` outputs of a call with several."""
        emission = self._raw.get(node, ())
        if not isinstance(emission, list):
            return [()] * count
        return [tuple(self._numbered(arrays)) for arrays in emission]

    def check(self, traced: TracedModel) -> None:
        """Refuse a graph that is not the one this coupling was made for, nor a copy of it.

        Raises: InvariantError naming the first node that is missing or has another shape.
        """
        nodes = {node.name: node for node in traced.graph.nodes}
        for name, shape in self._shapes.items():
            if name not in nodes:
                raise InvariantError(f"node '{name}' of the coupling is not in this graph; couple the graph itself")
            found = _shape(nodes[name])
            if found != shape:
                raise InvariantError(
                    f"node '{name}' is {found} in this graph, the coupling is of one where it is {shape}; "
                    "couple the graph itself"
                )

    def parameter_labels(self, name: str) -> tuple[Ints, ...]:
        """As :meth:`labels`, for a state-dict name; () where the graph does not read it."""
        return self.labels(self._parameters[name]) if name in self._parameters else ()

    def alive(self, keep: Mapping[GroupId, Sequence[int]]) -> npt.NDArray[np.bool_]:
        """Which channels stay: ``(N + 1,)`` bool, entry 0 (*stays*) always true. Groups not mentioned stay whole.

        Args:
            keep: Kept positions per group, strictly increasing in ``[0, width)``, equal counts per block.

        Raises: KeepError.
        """
        return alive_mask(self.groups, keep, self.total)

    @cached_property
    def graph(self) -> nx.MultiGraph[str]:
        """Sites and joins as nodes, ties as edges (``node``, ``where``, ``channels``)."""
        return network(self._labelling, self.cells.own, self._places)

    def why(self, a: str, b: str) -> list[Step]:
        """The shortest chain of ties between two sites (parameter name, or ``name[axis]``).

        Raises: KeepError for a site that does not exist, or two sites that share no coupled channel.
        """
        return path(self.graph, a, b)

    def channels_in(self, arrays: Sequence[Ints]) -> list[Ints]:
        """Channel numbers of arrays of cells: one array per channel an element goes with, each array once."""
        found: dict[tuple[tuple[int, ...], bytes], Ints] = {}
        for cells in arrays:
            for numbers in self.cells.levels(cells):
                array = compress(torch.from_numpy(numbers)).numpy()
                found.setdefault((array.shape, array.tobytes()), array)
        return list(found.values())

    def _numbered(self, arrays: Arrays) -> list[Ints]:
        result = []
        for array in arrays:
            numbers = self.cells.number[array.numpy()]
            if numbers.any():
                result.append(compress(torch.from_numpy(numbers)).numpy())
        return result


def _reads(labelling: Labelling) -> dict[tuple[str, str], tuple[int, ...] | None]:
    found: dict[tuple[str, str], tuple[int, ...] | None] = {}
    for reader, source, axes in labelling.store.reads:
        before = found.get((reader, source), ())
        found[reader, source] = None if before is None or axes is None else tuple(sorted({*before, *axes}))
    return found


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
