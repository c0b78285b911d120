"""From scores and a target to a plan."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, GroupId
from curlfx.errors import PlanError, TargetError, did_you_mean
from curlfx.graph import TracedModel
from curlfx.importance.scores import Scores
from curlfx.planning.budget import Ranking, Search
from curlfx.planning.fingerprint import Fingerprint
from curlfx.planning.greedy import solve_greedily
from curlfx.planning.knapsack import Knapsack, Solution
from curlfx.planning.price import Per, name_of, priced, resolve_per
from curlfx.planning.slim_plan import SlimPlan
from curlfx.planning.structure import class_of
from curlfx.planning.target import Amount, parse_targets
from curlfx.planning.units import Ints, Units, first_channels, kept_positions, make_units, rank_globally, rank_uniformly

Allocation = Literal["global", "uniform", "knapsack", "greedy"]
_LARGEST_STEP = 2**16
_FROZEN_BY_USER = re.compile(r"frozen by the user \((.*)\)")
_SHARE = re.compile(r"([\d.]{1,30}(?:/\d{1,30}|[eE][+-]?\d{1,2})?)\s*%?")  # 1e999999999 would fill the memory
HALF: Mapping[str, Amount] = {"macs": "50%"}

RANKINGS: Mapping[str, Ranking] = {"global": rank_globally, "uniform": rank_uniformly}
"""Who gives how much: one ranking over all groups, or the same share of every group."""
SOLVERS: Mapping[str, Callable[[Knapsack, Ints], Solution]] = {
    "knapsack": lambda problem, start: problem.solve(_better(problem, start, solve_greedily(problem).removed)),
    "greedy": lambda problem, _: solve_greedily(problem),
}
"""Or: what is worth most within the bounds, exactly or step by step; from widths that meet the bounds."""


def plan(
    traced: TracedModel,
    coupling: Coupling,
    scores: Scores,
    target: Mapping[str, Amount] = HALF,
    *,
    round_to: int | Literal["auto"] = "auto",
    global_pruning: bool = True,
    floor: float = 0.3,
    allocation: Allocation | None = None,
    per: Per = "auto",
    costs: CostModel | None = None,
) -> SlimPlan:
    """Choose the channels that stay, so that the slim network just meets the target.

    Args:
        traced: The dense network.
        coupling: Its channels.
        scores: What each channel is worth; the lowest go first.
        target: Upper bounds on ``macs``, ``params``, ``padded_macs``, ``size_mb`` or ``latency_ms`` (which wants a
            latency table in ``costs``); all must hold. ``"50%"`` is a share of the dense network, and so is 0.5 but of
            megabytes and milliseconds.
        round_to: Kept widths become multiples of this, by giving back the best of the removed channels; ``"auto"``: 16
            on a CPU with AVX-512, else 8. Groups that narrow take half of it, or a quarter and so on.
        global_pruning: False is ``allocation="uniform"``.
        floor: In [0, 1): a group gives no further channel once its kept share is below this.
        allocation: ``"global"`` ranks the channels of all groups together (CURL); ``"uniform"`` takes the same share of
            every group, the lowest scores first (a control); ``"knapsack"`` chooses the widths that keep the largest
            sum of scores within the bounds, by integer programming; ``"greedy"`` the same step by step (a control).
            None: see `default_allocation`.
        per: Divide scores by what a channel of its group costs: ``"macs"``, ``"padded_macs"`` or ``"latency"`` it saves
            in the dense network, or as given, a mapping or function of groups; ``"channel"`` leaves them (CURL).
            ``"auto"`` is ``"macs"`` for scores by ``kl`` that are ranked globally to reach MACs, else ``"channel"``.
        costs: The network's cost model, if the caller has one.

    Raises: TargetError for a target that means nothing; BudgetError for one that cannot be reached, with what stands
        in the way; PlanError when the scores belong to another network.
    Source: CURL (arXiv:1911.08114), index generation, with the number of removed channels found by bisection.
    """
    allocation = allocation or default_allocation(target, per)
    if allocation not in (*RANKINGS, *SOLVERS):
        raise PlanError(f"allocation = {allocation!r}: want one of {', '.join((*RANKINGS, *SOLVERS))}")
    if not (_is_number(floor) and 0 <= floor < 1):
        raise TargetError(f"floor = {floor!r}: want a share in [0, 1)")
    allocation = allocation if global_pruning else "uniform"
    per = resolve_per(per, scores.criterion, allocation, target)
    step = resolve_round_to(round_to)
    costs = costs or CostModel(traced, coupling)
    units = make_units(coupling, priced(scores, per, costs, coupling))
    targets = parse_targets(target, costs.dense)
    search = Search(units, costs, targets, RANKINGS.get(allocation, rank_globally), Fraction(str(floor)), step)
    removed, facts = search.removed(coupling), _provenance(traced, scores)
    if allocation in SOLVERS:
        check_worth(per, scores)
        steps = units.steps(step)
        caps = units.caps(search.floor, steps)
        found = SOLVERS[allocation](Knapsack(units, costs, targets, caps, steps), removed)
        removed = found.removed
        facts |= {"rounds": found.rounds} | ({"gap": found.gap} if math.isfinite(found.gap) else {})
    return SlimPlan(
        keep=kept_positions(coupling, units, removed),
        target=dict(target),
        importance=scores.criterion,
        allocation=allocation,
        per=name_of(per),
        floor=float(floor),
        round_to=step,
        before=costs.dense,
        after=costs.evaluate(units.alive(removed)),
        fingerprint=Fingerprint.of(traced, coupling),
        provenance=facts,
        frozen=frozen_names(coupling),
    )


def plan_from_widths(
    traced: TracedModel,
    coupling: Coupling,
    scores: Scores | None,
    widths: Mapping[str, int | float | str],
    *,
    costs: CostModel | None = None,
) -> SlimPlan:
    """A plan with given widths; the best-scored channels of each group (of each of its blocks) stay.

    Args:
        traced: The dense network.
        coupling: Its channels.
        scores: What each channel is worth; None: the first channels stay, for structures that are trained anew.
        widths: Kept channels by group id or pattern (``"layer1.*"``), as a number, or as a share of the group (``0.5``,
            ``"50%"``), rounded up to what its blocks allow. A full id goes before patterns, later patterns before
            earlier ones; groups that no entry names stay whole.
        costs: The network's cost model, if the caller has one.

    Raises: PlanError for a name that fits no group, or a width that the group cannot have.
    """
    costs = costs or CostModel(traced, coupling)
    scores = scores or first_channels(coupling)
    units = make_units(coupling, scores)
    removed = _removed_for(widths, units)
    return SlimPlan(
        keep=kept_positions(coupling, units, removed),
        target={},
        importance=scores.criterion,
        allocation="widths",
        floor=0.0,
        round_to=1,
        before=costs.dense,
        after=costs.evaluate(units.alive(removed)),
        fingerprint=Fingerprint.of(traced, coupling),
        provenance=_provenance(traced, scores),
        frozen=frozen_names(coupling),
    )


def resolve_round_to(round_to: int | Literal["auto"], provider: str = "cpu") -> int:
    """The number behind ``round_to``: ``"auto"`` is the floats in a vector register of this CPU, at least 8.

    For another provider of onnxruntime than the CPU it is 8, which tensor cores take in half precision (8-bit ones want
    32: give that number). Raises: TargetError for anything but ``"auto"`` and whole numbers from 1 to 65536.
    """
    if round_to == "auto" and not provider.lower().startswith("cpu"):
        return 8
    if round_to == "auto":
        return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability().upper() else 8
    if not (_is_number(round_to) and 1 <= round_to <= _LARGEST_STEP and int(round_to) == round_to):
        raise TargetError(f"round_to = {round_to!r}: want 'auto' or a whole number from 1 to {_LARGEST_STEP}")
    return int(round_to)


def default_allocation(target: Mapping[str, Amount], per: Per) -> Allocation:
    """``"knapsack"`` for a latency, unless scores are divided by what it weighs itself; else ``"global"``."""
    return "knapsack" if "latency_ms" in target and per in ("auto", "channel") else "global"


def check_worth(per: Per, scores: Scores) -> None:
    """Raises: PlanError when sums of scores are not what channels are worth."""
    if per != "channel":
        raise PlanError(f"per = {name_of(per)!r}: a knapsack weighs costs itself; leave it out, or allocation='global'")
    lowest = min((float(values.min(initial=0.0)) for values in scores.values.values()), default=0.0)
    if lowest < 0:
        raise PlanError(f"scores: the lowest is {lowest:.3g}: a knapsack adds them up and wants scores of at least 0")


def _better(problem: Knapsack, one: Ints, other: Ints) -> Ints:
    """Of two networks the one that loses less and meets the bounds, as the first one does."""
    meets = bool((problem.values(other) <= problem.limits).all())
    return other if meets and problem.loss(other) < problem.loss(one) else one


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _provenance(traced: TracedModel, scores: Scores) -> dict[str, JsonValue]:
    return {
        "curlfx": importlib.metadata.version("curlfx"),
        "torch": str(torch.__version__),
        "class": class_of(traced),
        **{name: int(number) for name, number in scores.details.items()},
    }


def frozen_names(coupling: Coupling) -> tuple[str, ...]:
    """The names that the coupling was made with, as far as they pin channels that nothing else does."""
    found = (_FROZEN_BY_USER.fullmatch(frozen.reason) for frozen in coupling.frozen)
    return tuple(dict.fromkeys(match[1] for match in found if match is not None))


def _removed_for(widths: Mapping[str, int | float | str], units: Units) -> Ints:
    chosen: dict[GroupId, int | float | str] = {}
    for name, width in widths.items():
        matched = [name] if name in units.ids else [group for group in units.ids if fnmatch.fnmatchcase(group, name)]
        if not matched:
            hint = did_you_mean(name, units.ids)
            raise PlanError(f"widths['{name}']: no free coupling group has this name{hint}")
        chosen.update({group: width for group in matched if group not in widths or group == name})
    removed = np.zeros_like(units.sizes)
    for position, group in enumerate(units.ids):
        if group in chosen:
            size, blocks = int(units.sizes[position]), int(units.blocks[position])
            removed[position] = size - _kept_units(group, chosen[group], size, blocks)
    return removed


def _kept_units(group: GroupId, width: float | str, size: int, blocks: int) -> int:
    """Kept units of one group of ``size`` units of ``blocks`` channels each. Raises: PlanError."""
    full = size * blocks
    if isinstance(width, int) and not isinstance(width, bool):
        kept, rest = divmod(width, blocks)
        if rest or not 1 <= kept <= size:
            among = f"multiples of {blocks} (it has {blocks} equal blocks) " if blocks > 1 else ""
            raise PlanError(f"widths['{group}'] = {width}: want {among}in [{blocks}, {full}]")
        return kept
    try:
        text = str(width).strip()
        found = _SHARE.fullmatch(text)
        share = Fraction(found[1] if found is not None else 0) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if isinstance(width, bool) or not 0 < share <= 1:
        raise PlanError(f"widths['{group}'] = {width!r}: want a number of channels, or a share like 0.5 or '50%'")
    return -int(-share * size // 1)
