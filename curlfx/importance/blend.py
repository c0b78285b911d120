"""Fast scores for all channels and exact ones for some, on one scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from curlfx.coupling import Group

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PER_GROUP = 4
BAND = (0.35, 0.65)
_STRENGTH = 1.0


def anchors(groups: Sequence[Group], fast: Floats, costs: Floats, budget: float) -> Ints:
    """Up to `PER_GROUP` channels of every group, evenly spread over its fast scores, large groups first.

    Shapes: fast, costs ``(N + 1,)``.
    Units: costs and budget in forward passes.
    """
    chosen: list[int] = []
    for group in sorted(groups, key=lambda group: -group.width):
        ranked = np.asarray(group.channels)[np.argsort(fast[group.channels], kind="stable")]
        ranked = ranked[fast[ranked] > 0]
        places = ((np.arange(PER_GROUP) + 0.5) / PER_GROUP * ranked.size).astype(np.int64)
        some = ranked[np.unique(places)] if ranked.size else ranked
        budget -= float(costs[some].sum())
        if budget < 0:
            break
        chosen.extend(some.tolist())
    return np.array(sorted(chosen), np.int64)


def band(values: Floats, known: Ints, costs: Floats, budget: float) -> Ints:
    """Channels whose rank among all lies in `BAND` and whose exact score is not known, from the middle outwards.

    Shapes: values, costs ``(N + 1,)``, entry 0 of no meaning.
    """
    ranks = (stats.rankdata(values[1:]) - 0.5) / max(values.size - 1, 1)
    middle = sum(BAND) / 2
    order = 1 + np.argsort(np.abs(ranks - middle), kind="stable")
    order = order[np.abs(ranks[order - 1] - middle) <= BAND[1] - middle]
    order = order[~np.isin(order, known)]
    return np.sort(order[np.cumsum(costs[order]) <= budget])


def calibrated(groups: Sequence[Group], fast: Floats, exact: Floats, known: Ints) -> Floats:
    """Exact scores where they are known; elsewhere fast ones times a factor of the group.

    The factor is the median of exact over fast in the group (on a log scale), drawn towards that of all groups as if
    these were `_STRENGTH` channels more. It keeps the order of the fast scores inside a group.

    Shapes: fast, exact and result ``(N + 1,)``.
    """
    usable = known[(fast[known] > 0) & (exact[known] > 0)]
    ratio = np.zeros_like(fast)
    ratio[usable] = np.log(exact[usable] / fast[usable])
    overall = float(np.median(ratio[usable])) if usable.size else 0.0
    result = fast.copy()
    for group in groups:
        own = usable[np.isin(usable, group.channels)]
        local = float(np.median(ratio[own])) if own.size else overall
        shift = (own.size * local + _STRENGTH * overall) / (own.size + _STRENGTH)
        result[group.channels] *= np.exp(shift)
    result[known] = exact[known]
    return result


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's, 1 where either side has one value only."""
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0
    return float(stats.spearmanr(a, b).statistic)
