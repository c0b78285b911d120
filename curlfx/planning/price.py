"""Scores per unit of what a channel costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal

import numpy as np

from curlfx.cost import Cost, CostModel
from curlfx.coupling import Coupling, Group, GroupId
from curlfx.errors import PlanError
from curlfx.importance.scores import Scores
from curlfx.planning.target import QUANTITIES, Amount

Priced = Literal["channel", "macs", "padded_macs", "latency"]
Per = Priced | Literal["auto"] | Mapping[GroupId, float] | Callable[[Group], float]
"""By what scores are divided: a name, or the cost of one channel of every group."""

_NO_LATENCY = (
    "this needs a latency table of the network on the runtime: measure one with curlfx.measure_latency and give "
    "costs=table.costs(traced, coupling), or take 'padded_macs' (multiply-adds after every channel axis is rounded up "
    "to the block of the runtime)"
)


def priced(scores: Scores, per: Per, costs: CostModel, coupling: Coupling) -> Scores:
    """The scores of every group divided by what one channel of it costs; with ``"channel"`` as they are.

    Groups that cost nothing count like the cheapest of the others.
    Raises: PlanError for another word, a group without a cost, a cost that is no number, or scores below 0, which a
        division would put in another order.
    Source: importance per cost as in Molchanov et al. (arXiv:1611.06440, section 2.2, regularised by FLOPs).
    """
    if per == "channel" or not coupling.groups:
        return scores
    scores.check(coupling)
    found = _prices(per, costs, coupling)
    for group, price in found.items():
        if not _is_cost(price):
            raise PlanError(f"per['{group}'] = {price!r}: want the cost of one channel, a number of at least 0")
        if scores.values[group].min(initial=0) < 0:
            raise PlanError(f"scores['{group}'] has numbers below 0: cost can only divide scores of at least 0")
    least = min((price for price in found.values() if price > 0), default=1.0)
    values = {group: numbers / max(found[group], least) for group, numbers in scores.values.items()}
    return Scores(scores.criterion, values, scores.details)


def resolve_per(per: Per, criterion: str, allocation: str, target: Mapping[str, Amount]) -> Per:
    """What stands behind ``"auto"``: MACs for scores by ``kl`` that are ranked globally to reach MACs, else nothing.

    On CIFAR ResNet-20 and ResNet-56 ``kl`` per MACs came back to a higher accuracy than ``kl`` at the same MACs in each
    of six runs; ``magnitude`` was worse for it in the one run that was made (``docs/planning.md``).
    """
    if per != "auto":
        return per
    by_output = criterion == "kl" or criterion.startswith("kl-")
    weighed = by_output and allocation == "global" and not {"macs", "padded_macs"}.isdisjoint(target)
    return "macs" if weighed else "channel"


def name_of(per: Per) -> Priced | Literal["given"]:
    """What a plan says of it, once it is resolved."""
    return per if isinstance(per, str) and per != "auto" else "given"


def _is_cost(price: object) -> bool:
    return isinstance(price, int | float) and math.isfinite(price) and price >= 0


def _prices(per: Per, costs: CostModel, coupling: Coupling) -> dict[GroupId, float]:
    """Cost of one channel of every group of the dense network."""
    if isinstance(per, Mapping):
        lacking = next((group.id for group in coupling.groups if group.id not in per), None)
        if lacking is not None:
            raise PlanError(f"per: lacks group '{lacking}': want the cost of one channel of every group")
        return {group.id: per[group.id] for group in coupling.groups}
    if per == "macs":
        return {group.id: costs.per_channel(group.id).macs for group in coupling.groups}
    if per == "latency" and costs.latency is None:
        raise PlanError(f"per = 'latency': {_NO_LATENCY}")
    if per in ("padded_macs", "latency"):
        quantity = QUANTITIES["padded_macs" if per == "padded_macs" else "latency_ms"]
        return {group.id: _mean_saving(costs, group, quantity) for group in coupling.groups}
    if callable(per):
        return {group.id: per(group) for group in coupling.groups}
    raise PlanError(f"per = {per!r}: want 'channel', 'macs', 'padded_macs', 'latency', a mapping or a function")


def _mean_saving(costs: CostModel, group: Group, quantity: Callable[[Cost], Fraction]) -> float:
    """What a channel saves: the mean from all of the group's channels down to one of every block.

    One channel less mostly saves nothing at all, the sixteenth saves what sixteen do.
    """
    blocks = np.zeros(group.width, np.int64) if group.blocks is None else np.asarray(group.blocks)
    _, first = np.unique(blocks, return_index=True)
    alive = costs.everything()
    alive[np.delete(np.asarray(group.channels), first)] = False
    saved = quantity(costs.dense) - quantity(costs.evaluate(alive))
    return float(saved) / max(group.width - len(first), 1)
