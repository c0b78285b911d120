"""The record of one labelling: who owns each label, what is tied, frozen, balanced, and why."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curlfx.labels.arrays import along, compress, different_rows, first_along, rows, support


@dataclass(frozen=True)
class Origin:
    """What a contiguous range of labels was made for: an axis of a parameter, or a place that makes channels (a pad).

    Attributes:
        name: State-dict name of the parameter, or name of the FX node.
        axis: Axis of that tensor.
        start: First label of the range.
        size: Number of labels.
        parameter: Whether ``name`` is a parameter or buffer (a *site*) rather than a node.
    """

    name: str
    axis: int
    start: int
    size: int
    parameter: bool


@dataclass(frozen=True)
class Tie:
    """Two vectors of labels ``(n,)`` that name the same channels, and the FX node that says so."""

    a: Tensor
    b: Tensor
    node: str


@dataclass(frozen=True)
class Nest:
    """Labels ``(n,)`` that go when the labels ``(n,)`` of their blocks go, and the FX node that says so."""

    child: Tensor
    parent: Tensor
    node: str


@dataclass(frozen=True)
class Projection:
    """Labels ``(rows, width)`` of which ``shared`` ``(width,)`` keep the places that all rows keep."""

    matrix: Tensor
    shared: Tensor


@dataclass(frozen=True)
class Product:
    """Labels ``(n,)`` that stay exactly while all of their ``factors`` do, each ``(n,)``; the first is aligned."""

    labels: Tensor
    factors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Freeze:
    """Labels ``(n,)`` that must stay, the FX node that pins them, and the reason in words.

    Attributes:
        whole: Whether the blocks they are in must stay too; if not, they stay as long as their block does.
    """

    labels: Tensor
    node: str
    reason: str
    whole: bool = True


@dataclass(frozen=True)
class Balance:
    """Matrix of labels ``(rows, columns)``: every row that is left must keep the same number of channels.

    Attributes:
        around: ``(rows,)`` labels that say which rows are left; 0 for those that stay.
    """

    matrix: Tensor
    around: Tensor
    node: str


@dataclass
class LabelStore:
    """Grows while the graph is walked; read once afterwards.

    Label 0 is *frozen*; fresh labels start at 1. Everything is recorded as arrays, never as an object per channel.

    Attributes:
        alignments: Labels in different blocks at matching positions: kept alike, yet no block needs another.
        nests: Labels beside the labels of the blocks they are in (a channel in its head).
        rows: Labels made for blocks.
        projections: Alignments of the positions of all blocks with labels that the blocks share.
        products: Labels made where axes merge, of channels that go with others in some places only.
        producers: Labels that some layer computes (the output axis of a contraction's weight, an embedding's rows).
        statistics: Labels that a normalisation averages over (LayerNorm, GroupNorm).
        tables: Nodes with constant values that are computed whole, and narrowed along these axes where they are read.
        retired: Labels of axes that got an array of another shape (``relabelled``, by parameter); they name nothing.
        attached: Retired labels beside the labels that took their place, for explanations only.
        reads: ``(node, input, axes)``: at that node, that input is summed over the channels along these axes (None:
            over all of its channels); gates go there.
    """

    origins: list[Origin] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    alignments: list[Tie] = field(default_factory=list)
    nests: list[Nest] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    projections: list[Projection] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    producers: list[Tensor] = field(default_factory=list)
    statistics: list[Tensor] = field(default_factory=list)
    reads: list[tuple[str, str, tuple[int, ...] | None]] = field(default_factory=list)
    tables: dict[str, tuple[int, ...]] = field(default_factory=dict)
    retired: list[Tensor] = field(default_factory=list)
    attached: list[Tie] = field(default_factory=list)
    relabelled: dict[str, tuple[Tensor, ...] | list[tuple[Tensor, ...]]] = field(default_factory=dict)
    size: int = 1
    _parents: Tensor = field(default_factory=lambda: torch.zeros(1024, dtype=torch.int64), repr=False)

    def fresh(self, count: int, name: str, axis: int, *, parameter: bool) -> Tensor:
        """Make ``count`` new labels ``(count,)`` owned by an axis of a parameter or node."""
        self.origins.append(Origin(name, axis, self.size, count, parameter))
        labels = torch.arange(self.size, self.size + count)
        self.size += count
        return labels

    def origin_of(self, label: int) -> Origin:
        """The owner of one label (``label >= 1``)."""
        return self.origins[bisect_right([origin.start for origin in self.origins], label) - 1]

    def tie(self, a: Tensor, b: Tensor, node: str) -> None:
        """Record that two arrays, broadcast against each other, name the same channels."""
        if a is b:
            return
        left, right = torch.broadcast_tensors(a, b)
        self.ties.append(Tie(left.reshape(-1), right.reshape(-1), node))

    def align(self, a: Tensor, b: Tensor, node: str) -> None:
        """Record that two arrays, broadcast against each other, keep matching positions, each in blocks of its own."""
        left, right = torch.broadcast_tensors(a, b)
        self.alignments.append(Tie(left.reshape(-1), right.reshape(-1), node))

    def nest(self, child: Tensor, parent: Tensor, node: str) -> None:
        """Record that the labels of ``child`` go with those of ``parent``, broadcast to it.

        A block stays that holds something without a label.
        """
        inner, outer = child.reshape(-1), parent.expand(child.shape).reshape(-1)
        free = inner != 0
        if not bool(free.all()):
            self.freezes.append(Freeze(outer[~free], node, "in a block with channels that have no labels"))
            inner, outer = inner[free], outer[free]
        self.nests.append(Nest(inner, outer, node))
        known = self._parent(inner)
        self._parents[inner] = torch.where(known == 0, outer, known)

    def freeze(self, array: Tensor, node: str, reason: str) -> None:
        """Record that every label of ``array`` must stay.

        Where the array varies along several axes, its blocks have an array of their own, which this does not touch.
        """
        self.freezes.append(Freeze(array.reshape(-1), node, reason, whole=len(support(array)) < 2))

    def balance(self, array: Tensor, around: Tensor | None, node: str) -> None:
        """Require equal kept counts along the last varying axis of ``array``, for every position of the others.

        Args:
            array: The labels.
            around: Labels of those other positions, broadcastable to ``array``; None where all of them stay.
            node: FX node that requires it.
        """
        if len(support(array)) > 1:
            matrix = rows(array)
            outer = torch.zeros(1, dtype=torch.int64) if around is None else rows(around.expand(array.shape))[:, 0]
            self.balances.append(Balance(matrix, outer.expand(len(matrix)), node))

    def blocks(self, array: Tensor, node: str) -> list[Tensor]:
        """Balance an array, and give its blocks labels: one array for every run of outer axes.

        Shapes: array varying along axes ``(a, …, y, z)``; result arrays that vary along ``(a, …, y)``, …, ``(a,)`` at
        most. Blocks that have labels already keep them.
        """
        result: list[Tensor] = []
        while len(axes := support(array)) > 1:
            outer = self._parent(array).narrow(axes[-1], 0, 1)
            if not bool((outer != 0).all()) or not self._names_blocks(array, outer):
                count, which = different_rows(rows(array))
                labels = self.fresh(count, node, axes[-2], parameter=False)
                self.rows.append(labels)
                outer = labels[which].reshape(outer.shape)
                self.nest(array, outer, node)
            self.balance(array, outer, node)
            array = compress(outer)
            result.append(array)
        return result

    def project(self, array: Tensor, axes: tuple[int, ...], node: str) -> Tensor:
        """Make the labels vary along ``axes`` only: new labels, aligned with every position of the other axes."""
        others = tuple(axis for axis in support(array) if axis not in axes)
        if not others:
            return array
        first = first_along(array, others)
        shared = self.fresh(first.numel(), node, max(support(first), default=0), parameter=False).reshape(first.shape)
        self.align(array, shared, node)
        order = (*others, *(axis for axis in range(array.ndim) if axis not in others))
        self.projections.append(Projection(array.permute(order).reshape(-1, first.numel()), shared.reshape(-1)))
        return shared

    def _names_blocks(self, array: Tensor, known: Tensor) -> bool:
        """Whether ``known`` tells the blocks of an array apart: one label for each, and another for every other."""
        if not bool((self._parent(array) == known).all()):
            return False
        return different_rows(rows(array))[0] == len(torch.unique(known))

    def _parent(self, labels: Tensor) -> Tensor:
        """The block that each label was first said to be in, 0 for none."""
        if self._parents.numel() < self.size:
            grown = torch.zeros(2 * self.size, dtype=torch.int64)
            grown[: self._parents.numel()] = self._parents
            self._parents = grown
        return self._parents[labels]

    def parameter(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Fresh labels for every axis longer than 1 of a parameter, one array per axis."""
        return tuple(
            along(self.fresh(size, name, axis, parameter=True), len(shape), axis)
            for axis, size in enumerate(shape)
            if size > 1
        )
