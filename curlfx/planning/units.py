"""Removal units: what goes in one step, in which order, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curlfx.coupling import Coupling, Group, GroupId
from curlfx.errors import InvariantError
from curlfx.importance.scores import Scores

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


FEWEST = 4  # channels that onnxruntime reads at a time


@dataclass(frozen=True, eq=False)
class Units:
    """The removal units of a network, group after group, lowest score first inside each.

    A unit is one channel; of a group with blocks it is one channel of every block, the ``r``-th lowest of each. So what
    a plan removes from a group is always its first few units, and a plan is one number per group.

    Attributes:
        ids: Group ids.
        sizes: Units of each group, ``(G,)``.
        blocks: Channels in a unit of each group, ``(G,)``.
        whole: Groups whose units are whole blocks of other groups' channels, ``(G,)``.
        inside: For each group the positions of the groups whose channels are in its blocks.
        group: Group of each unit, ``(U,)``.
        rank: Position of each unit in its group, ``(U,)``.
        score: Score of each unit, the mean over its channels, ``(U,)``.
        channels: Global number of each channel, ``(N,)``.
        channel_group: Its group, ``(N,)``.
        channel_rank: Rank of its unit, ``(N,)``.
    """

    ids: tuple[GroupId, ...]
    sizes: Ints
    blocks: Ints
    whole: npt.NDArray[np.bool_]
    inside: tuple[tuple[int, ...], ...]
    group: Ints
    rank: Ints
    score: Floats
    channels: Ints
    channel_group: Ints
    channel_rank: Ints

    def alive(self, removed: Ints) -> npt.NDArray[np.bool_]:
        """Living channels ``(N + 1,)`` after the first ``removed`` ``(G,)`` units of every group went."""
        alive = np.ones(self.channels.size + 1, bool)
        alive[self.channels[self.channel_rank < removed[self.channel_group]]] = False
        return alive

    def caps(self, floor: Fraction, steps: Ints | None = None) -> Ints:
        """Most units that may go, ``(G,)``: one goes only while the kept share is at least ``floor``; one always stays.

        With ``steps`` none may go of a group that has no other multiple than the whole.

        Source: CURL (arXiv:1911.08114), index generation: the check precedes the removal, so of 64 channels 19 are
        left at 0.3.
        """
        allowed = self.sizes * (floor.denominator - floor.numerator) // floor.denominator + 1
        caps: Ints = np.clip(allowed, 0, self.sizes - 1)
        return caps if steps is None else np.where(steps < self.sizes, caps, 0)

    def steps(self, round_to: int) -> Ints:
        """Kept units of each group come in multiples of this, ``(G,)``, so that kept channels do of ``round_to``.

        Of blocks no wider than ``round_to`` only whole ones go, where some of them make a multiple: a runtime that
        works on as many channels at a time saves nothing inside them. Else whole blocks take what is left to make a
        multiple once the channels inside them come in steps of their own. Another group that is no wider than
        ``round_to`` would have no choice at all; it takes the half of it, or the quarter and so on, that leaves one,
        but no less than 4: onnxruntime leaves its fast path where a convolution reads other numbers of channels.
        """
        steps, narrow = np.ones_like(self.sizes), self._only_whole(round_to)
        for position in np.argsort(self.whole, kind="stable").tolist():
            if position in narrow:
                steps[position] = self.sizes[position]
                continue
            inner = [int(steps[child]) for child in self.inside[position]]
            lacking = [round_to // math.gcd(round_to, step) for step in inner] if self.whole[position] else [round_to]
            step, size, blocks = max(lacking, default=1), int(self.sizes[position]), int(self.blocks[position])
            least = FEWEST if round_to >= FEWEST else 1
            while (
                not self.whole[position]
                and step // math.gcd(blocks, step) >= size
                and step % 2 == 0
                and step // 2 >= least
            ):
                step //= 2
            steps[position] = step // math.gcd(blocks, step)
        return steps

    def _only_whole(self, round_to: int) -> set[int]:
        """The groups inside of whose blocks nothing goes, as they are no wider than ``round_to``."""
        found: set[int] = set()
        for position in np.flatnonzero(self.whole).tolist():
            widths = [int(self.sizes[child]) for child in self.inside[position]]
            lacking = max((round_to // math.gcd(round_to, width) for width in widths), default=1)
            if widths and max(widths) <= round_to and lacking < self.sizes[position]:
                found |= set(self.inside[position])
        return found

    def rounded(self, removed: Ints, steps: Ints) -> Ints:
        """``removed`` after the best units were given back until kept units are multiples of ``steps``, or all."""
        kept = -(-(self.sizes - removed) // steps) * steps
        rounded: Ints = self.sizes - np.minimum(kept, self.sizes)
        return rounded


def first_channels(coupling: Coupling) -> Scores:
    """Scores by which the first channels of every group stay."""
    return Scores("first", {group.id: -np.arange(group.width, dtype=np.float64) for group in coupling.groups})


def make_units(coupling: Coupling, scores: Scores) -> Units:
    """The removal units of all groups. Raises: PlanError when the scores are for other groups."""
    scores.check(coupling)
    groups = coupling.groups
    sizes, blocks, unit_scores, ranks = [], [], [], []
    for group in groups:
        channel_rank, score = _group_units(group, scores.values[group.id])
        sizes.append(score.size)
        blocks.append(group.width // score.size)
        unit_scores.append(score)
        ranks.append(channel_rank)
    size = np.array(sizes, np.int64)
    widths = np.array([group.width for group in groups], np.int64)
    numbers = np.arange(len(groups), dtype=np.int64)
    return Units(
        ids=tuple(group.id for group in groups),
        sizes=size,
        blocks=np.array(blocks, np.int64),
        whole=np.array([group.whole_blocks for group in groups], bool),
        inside=_inside(coupling),
        group=np.repeat(numbers, size),
        rank=_joined([np.arange(count) for count in sizes]),
        score=np.concatenate([*unit_scores, np.zeros(0)]),
        channels=_joined([np.asarray(group.channels) for group in groups]),
        channel_group=np.repeat(numbers, widths),
        channel_rank=_joined(ranks),
    )


def _inside(coupling: Coupling) -> tuple[tuple[int, ...], ...]:
    """For each group the positions of the other groups that share cells with it."""
    owner = np.full(coupling.total + 1, -1, np.int64)
    for position, group in enumerate(coupling.groups):
        owner[np.asarray(group.channels)] = position
    owners = owner[coupling.cells.channels[coupling.total + 1 :]]
    found: list[set[int]] = [set() for _ in coupling.groups]
    for row in np.unique(owners, axis=0).tolist():
        members = {position for position in row if position >= 0}
        for position in members:
            found[position] |= {other for other in members - {position} if not coupling.groups[other].whole_blocks}
    return tuple(tuple(sorted(each)) for each in found)


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _group_units(group: Group, scores: Floats) -> tuple[Ints, Floats]:
    """Rank of every channel's unit ``(width,)``, and the scores of the units, ascending."""
    blocks = np.zeros(group.width, np.int64) if group.blocks is None else np.asarray(group.blocks, np.int64)
    counts = np.bincount(blocks)
    if (counts != counts[0]).any():
        raise InvariantError(f"group '{group.id}': blocks of unequal size {counts.tolist()}")
    order = np.lexsort((np.arange(group.width), scores, blocks))
    rank = np.empty(group.width, np.int64)
    rank[order] = np.tile(np.arange(counts[0]), counts.size)
    return rank, scores[order].reshape(counts.size, counts[0]).mean(axis=0)


def kept_positions(coupling: Coupling, units: Units, removed: Ints) -> dict[GroupId, tuple[int, ...]]:
    """Kept positions of every group that loses channels."""
    alive = units.alive(removed)
    return {
        group.id: tuple(np.flatnonzero(alive[group.channels]).tolist())
        for group, gone in zip(coupling.groups, removed.tolist(), strict=True)
        if gone
    }


def rank_globally(units: Units, caps: Ints) -> Ints:
    """All removable units of all groups in one row, lowest score first, ties by (group, channel).

    Shapes: caps ``(G,)``; result ``(K,)``, the group of each unit.
    Source: CURL (arXiv:1911.08114), index generation; no normalisation by layer or MACs.
    """
    return _ranked(units, caps, np.lexsort((units.rank, units.group, units.score)))


def rank_uniformly(units: Units, caps: Ints) -> Ints:
    """All removable units in the order in which a ratio that grows in every group alike takes them.

    Whole blocks stay where the channels inside them may go.
    Where several groups reach the same ratio, the one with the lowest score gives first; so widths differ from a
    common ratio by one unit at most (by one multiple, when they are rounded).
    Shapes: caps ``(G,)``; result ``(K,)``, the group of each unit.
    """
    share = (units.rank + 1) / units.sizes[units.group]
    double = [
        whole and any(caps[inside] > 0) for whole, inside in zip(units.whole, map(list, units.inside), strict=True)
    ]
    return _ranked(units, np.where(double, 0, caps), np.lexsort((units.rank, units.group, units.score, share)))


def _ranked(units: Units, caps: Ints, order: Ints) -> Ints:
    removable: Ints = units.group[order][units.rank[order] < caps[units.group[order]]]
    return removable
