"""The record of one labelling: who owns each label, what is tied, frozen, balanced, and why."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curlfx.labels.arrays import along, first_along, rows, support


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
class Freeze:
    """Labels ``(n,)`` that must stay, the FX node that pins them, and the reason in words."""

    labels: Tensor
    node: str
    reason: str


@dataclass(frozen=True)
class Balance:
    """Matrix of labels ``(rows, columns)``: every row must keep the same number of channels."""

    matrix: Tensor
    node: str


@dataclass
class LabelStore:
    """Grows while the graph is walked; read once afterwards.

    Label 0 is *frozen*; fresh labels start at 1. Everything is recorded as arrays, never as an object per channel.

    Attributes:
        producers: Labels that some layer computes (the output axis of a contraction's weight, an embedding's rows).
        statistics: Labels that a normalisation averages over (LayerNorm, GroupNorm).
        retired: Labels of axes that got an array of another shape (``relabelled``, by parameter); they name nothing.
        attached: Retired labels beside the labels that took their place, for explanations only.
        reads: ``(node, input)`` pairs: at that node, that input is summed over channels; gates go there.
    """

    origins: list[Origin] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    producers: list[Tensor] = field(default_factory=list)
    statistics: list[Tensor] = field(default_factory=list)
    reads: list[tuple[str, str]] = field(default_factory=list)
    retired: list[Tensor] = field(default_factory=list)
    attached: list[Tie] = field(default_factory=list)
    relabelled: dict[str, tuple[Tensor, ...] | list[tuple[Tensor, ...]]] = field(default_factory=dict)
    size: int = 1

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

    def freeze(self, array: Tensor, node: str, reason: str) -> None:
        """Record that every label of ``array`` must stay."""
        self.freezes.append(Freeze(array.reshape(-1), node, reason))

    def balance(self, array: Tensor, node: str) -> None:
        """Require equal kept counts along the last varying axis of ``array``, for every position of the others."""
        if len(support(array)) > 1:
            self.balances.append(Balance(rows(array), node))

    def project(self, array: Tensor, axes: tuple[int, ...], node: str) -> Tensor:
        """Make the labels vary along ``axes`` only: positions that differ elsewhere are tied to the first one."""
        others = tuple(axis for axis in support(array) if axis not in axes)
        if not others:
            return array
        first = first_along(array, others)
        self.tie(array, first, node)
        return first

    def parameter(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Fresh labels for every axis longer than 1 of a parameter, one array per axis."""
        return tuple(
            along(self.fresh(size, name, axis, parameter=True), len(shape), axis)
            for axis, size in enumerate(shape)
            if size > 1
        )
