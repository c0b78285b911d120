"""Widths as a multiple-choice knapsack: the most worth of channels within the bounds, exact by integer programming.

Every group chooses one of its widths; what it loses is the sum of the scores that go. The cost of a network is no sum
over its groups (a layer reads one group and writes another), so costs are linearised at a network that meets the
bounds, the knapsack is solved for widths near it, and the cost of what comes out is looked at afresh: it becomes the
next point if it meets the bounds and loses less, else the neighbourhood shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from curlfx.cost import CostModel
from curlfx.planning.target import Target
from curlfx.planning.units import Floats, Ints, Units

ROUNDS = 24  # linearisations
OPTIONS = 13  # widths of a group that one knapsack chooses from
TIGHTEN = 3  # times that bounds are tightened by what linearisation overlooked before the neighbourhood shrinks
NODES, GAP = 1000, 1e-3  # of one integer program: unlike seconds, nodes give the same plan on every machine
ENOUGH = 1e-3  # relative gain in what is lost below which a wide neighbourhood is left


@dataclass(frozen=True, eq=False)
class Solution:
    """What the knapsack found.

    Attributes:
        removed: Units to remove of each group, ``(G,)``.
        loss: Sum of the scores that go.
        gap: Relative gap of the last integer program that improved it: 0 is optimal for the linearised costs.
        rounds: Linearisations.
    """

    removed: Ints
    loss: float
    gap: float
    rounds: int


class Knapsack:
    """The problem: groups, their widths, and the bounds.

    Args:
        units: What can go.
        costs: What a keep set costs.
        targets: Bounds that all hold.
        caps: Most units that may go of each group, ``(G,)``.
        steps: Kept units are multiples of these, ``(G,)``, or all.
        time_limit: Seconds for one integer program.

    Attributes:
        widths: Of every group the numbers of units that may go, ascending, the first one 0.
        limits: The bounds as shares of the dense network, ``(T,)``.
    """

    def __init__(
        self,
        units: Units,
        costs: CostModel,
        targets: Sequence[Target],
        caps: Ints,
        steps: Ints,
        *,
        time_limit: float = 20.0,
    ) -> None:
        self.units, self.costs, self.targets, self.time_limit = units, costs, tuple(targets), time_limit
        self.limits = np.array([float(target.limit / target.dense) for target in targets])
        self.widths = [
            _widths(int(size), int(cap), int(step)) for size, cap, step in zip(units.sizes, caps, steps, strict=True)
        ]
        self._losses = _losses(units)

    def loss(self, removed: Ints) -> float:
        """Sum of the scores of all channels that go."""
        return float(sum(own[gone] for own, gone in zip(self._losses, removed.tolist(), strict=True)))

    def values(self, removed: Ints) -> Floats:
        """Each target's quantity as a share of the dense network's, ``(T,)``."""
        cost = self.costs.evaluate(self.units.alive(removed))
        return np.array([float(target.value(cost) / target.dense) for target in self.targets])

    def solve(self, start: Ints) -> Solution:
        """The best widths that can be reached from ``start`` ``(G,)``, which meets the bounds."""
        best, loss, gap, reach, rounds = start, self.loss(start), 0.0, 1.0, 0
        while rounds < ROUNDS and reach * int(self.units.sizes.max(initial=0)) >= 1:
            rounds += 1
            found = self._improved(best, loss, reach)
            if found is None:
                reach /= 2
                continue
            (best, found_loss, gap), before = found, loss
            loss = found_loss
            if before - loss < ENOUGH * max(before, 1e-30):
                reach /= 2
        return Solution(best, loss, gap, rounds)

    def _improved(self, best: Ints, loss: float, reach: float) -> tuple[Ints, float, float] | None:
        """A network near ``best`` that meets the bounds and loses less, with the gap; None when none was found."""
        options = [self._near(group, gone, reach) for group, gone in enumerate(best.tolist())]
        owner = np.repeat(np.arange(len(options)), [len(own) for own in options])
        gone = np.concatenate(options)
        here = self.values(best)
        extra = np.stack(
            [self._with(best, *choice) - here for choice in zip(owner.tolist(), gone.tolist(), strict=True)]
        )
        losses = np.array([self._losses[group][count] for group, count in zip(owner, gone, strict=True)])
        room = self.limits - here
        for _ in range(TIGHTEN):
            chosen = _choose(losses, extra, owner, room, self.time_limit)
            if chosen is None:
                return None
            picked, gap = chosen
            found = best.copy()
            found[owner[picked]] = gone[picked]
            if self.loss(found) >= loss * (1 - 1e-12):
                return None
            over = self.values(found) - self.limits
            if (over <= 0).all():
                return found, self.loss(found), gap
            room = room - np.maximum(over, 0) * 1.1
        return None

    def _near(self, group: int, gone: int, reach: float) -> Ints:
        """Numbers of units to remove within reach of the present one, evenly spread, the present one among them."""
        widths = self.widths[group]
        within = widths[np.abs(widths - gone) <= reach * self.units.sizes[group]]
        picks = np.linspace(0, len(within) - 1, min(OPTIONS, len(within))).round().astype(np.int64)
        near = np.searchsorted(within, gone) + np.arange(-2, 3)
        near = near[(near >= 0) & (near < len(within))]
        chosen: Ints = np.union1d(within[np.union1d(picks, near)], gone).astype(np.int64)
        return chosen

    def _with(self, removed: Ints, group: int, gone: int) -> Floats:
        other = removed.copy()
        other[group] = gone
        return self.values(other)


def _widths(size: int, cap: int, step: int) -> Ints:
    """Numbers of units that may go of a group, ascending: what stays is a multiple of ``step``, or all."""
    kept = np.arange(size // step * step, 0, -step, dtype=np.int64)
    gone: Ints = np.union1d(size - kept, [0]).astype(np.int64)
    return gone[gone <= cap]


def _losses(units: Units) -> list[Floats]:
    """Of every group the sum of the scores of its first 0, 1, 2, … units, all channels of a unit counted."""
    own = np.split(units.score, np.cumsum(units.sizes))[:-1]  # behind the last group is nothing
    return [
        np.concatenate([[0.0], np.cumsum(scores)]) * blocks
        for scores, blocks in zip(own, units.blocks.tolist(), strict=True)
    ]


def _choose(
    losses: Floats, extra: Floats, owner: Ints, room: Floats, time_limit: float
) -> tuple[npt.NDArray[np.bool_], float] | None:
    """One option of every group, the least lost with the extra costs within the room; and the gap.

    Shapes: losses ``(K,)``, extra ``(K, T)``, owner ``(K,)``, room ``(T,)``; result ``(K,)``.
    """
    one_each = sparse.coo_array((np.ones(owner.size), (owner, np.arange(owner.size)))).tocsr()
    scale = max(float(np.abs(losses).max()), 1e-300)
    found = milp(
        losses / scale,
        integrality=np.ones_like(losses),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(extra.T, -np.inf, room)],
        options={"time_limit": time_limit, "node_limit": NODES, "mip_rel_gap": GAP},
    )
    if found.x is None:
        return None
    return found.x > 0.5, float(found.mip_gap or 0.0)
