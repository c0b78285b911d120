"""Widths step by step: the control beside the knapsack."""

from __future__ import annotations

import heapq
import math

import numpy as np

from curlfx.planning.knapsack import Knapsack, Solution
from curlfx.planning.units import Floats, Ints


def solve_greedily(problem: Knapsack) -> Solution:
    """Again and again the group whose next width loses least for what it saves, until every bound holds.

    What a step saves changes when others are made, so the first of the row is looked at again before it is taken.
    Where bounds cannot all be met, everything that may go is gone. Source: lazy evaluation, Minoux 1978.
    """
    removed = np.zeros_like(problem.units.sizes)
    here, rounds = problem.values(removed), 0
    row = [(0.0, group) for group in range(removed.size)]  # cheapest first; a price may be out of date
    while row and (here > problem.limits).any():
        _, group = heapq.heappop(row)
        step = _step(problem, removed, here, group)
        if step is None:
            continue
        price, narrower, after = step
        if row and price > row[0][0]:
            heapq.heappush(row, (price, group))
            continue
        removed, here, rounds = narrower, after, rounds + 1
        heapq.heappush(row, (0.0, group))
    return Solution(removed, problem.loss(removed), math.inf, rounds)


def _step(problem: Knapsack, removed: Ints, here: Floats, group: int) -> tuple[float, Ints, Floats] | None:
    """The next width of a group: its price, the network with it, and that network's values; None when there is none."""
    wider = problem.widths[group]
    left = wider[wider > removed[group]]
    if not left.size:
        return None
    narrower = removed.copy()
    narrower[group] = left[0]
    after = problem.values(narrower)
    missed = here > problem.limits
    saved = float((here - np.maximum(after, problem.limits))[missed].sum())
    lost = problem.loss(narrower) - problem.loss(removed)
    return (lost / saved if saved > 0 else math.inf), narrower, after
