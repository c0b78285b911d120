"""Which channels go at one step, given what has gone before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from curlfx.planning.budget import Ranking
from curlfx.planning.units import Ints, Units


def most(units: Units, floor: float) -> Ints:
    """Most units that may ever go, ``(G,)``: of ``n`` at least ``ceil(floor · n)`` stay, and at least one.

    Two stay where the slim network, which is scored again, would have its channels coupled in other groups, or under
    other names: of whole blocks, of the channels in each block, and of groups that start in the same parameter.
    """
    share = Fraction(str(floor))
    starts = Counter(group.partition("#")[0] for group in units.ids)
    shared = np.array([starts[group.partition("#")[0]] > 1 for group in units.ids], bool)
    least = np.where(units.whole | (units.blocks > 1) | shared, 2, 1)
    kept = np.maximum(-(-units.sizes * share.numerator // share.denominator), least)
    caps: Ints = np.maximum(units.sizes - kept, 0)
    return caps


def next_removed(
    units: Units,
    gone: Ints,
    caps: Ints,
    steps: Ints,
    ranking: Ranking,
    channels: int | None,
    met: Callable[[Ints], bool],
    *,
    give_back: bool = True,
) -> Ints:
    """Units of each group that are gone after this step, ``(G,)``, never fewer than before.

    All groups stand in one row; the fewest go that make ``met`` true, but no more than have
    ``channels`` channels between them, where that is given; or, where rounding leaves nothing of those, the fewest of
    which something is left. Where ``met`` is overshot, because the last ones go together with many others (a residual
    stream, a rounded width), what went before them is given back as far as ``met`` stays true, the last one first.

    Args:
        units: Of the dense network; what is gone comes first in every group.
        gone: Units of each group that went before, ``(G,)``.
        caps: Most that may ever go, ``(G,)``.
        steps: Kept units come in multiples of this, ``(G,)``.
        ranking: The row, as of a network that has lost nothing.
        channels: Coupled channels that may go now; None: any number.
        met: Whether enough is gone.
        give_back: False leaves it at what the row says, so that equal shares stay equal.
    """
    row = _left(ranking(units, caps), gone)

    def after(count: int) -> Ints:
        removed = gone + np.bincount(row[:count], minlength=gone.size).astype(np.int64)
        result: Ints = np.maximum(units.rounded(removed, steps), gone)
        return result

    low, high = 0, row.size
    if channels is not None:
        high = min(high, max(1, int((np.cumsum(units.blocks[row]) <= channels).sum())))
        while high < row.size and (after(high) == gone).all():
            high += 1
    if not met(after(high)):
        return after(high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(after(middle)) else (middle + 1, high)
    removed = after(high)
    for one in dict.fromkeys(row[:high][::-1].tolist()) if give_back else ():
        removed = _given_back(removed, gone, one, int(steps[one]), units, met)
    return removed


def _left(row: Ints, gone: Ints) -> Ints:
    """A row of groups without the first ``gone`` ``(G,)`` of each."""
    order = np.argsort(row, kind="stable")
    rank = np.empty_like(row)
    rank[order] = np.arange(row.size) - np.searchsorted(row[order], row[order])
    left: Ints = row[rank >= gone[row]]
    return left


def _given_back(removed: Ints, gone: Ints, group: int, step: int, units: Units, met: Callable[[Ints], bool]) -> Ints:
    """``removed`` with as many units of a group back as ``met`` allows, kept ones in multiples of ``step`` or all."""
    while removed[group] > gone[group]:
        kept = units.sizes[group] - removed[group]
        fewer = removed.copy()
        fewer[group] = max(units.sizes[group] - (kept // step + 1) * step, gone[group])
        if not met(fewer):
            break
        removed = fewer
    return removed
