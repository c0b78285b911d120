"""Prune in steps: score what is left again before more goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, GroupId, couple
from curlfx.errors import PlanError, TargetError
from curlfx.graph import TracedModel
from curlfx.importance.scores import Scores, Values
from curlfx.labels.compact import Bools
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning.choose import HALF, SOLVERS, frozen_names, plan
from curlfx.planning.price import Per, name_of, priced, resolve_per
from curlfx.planning.slim_plan import SlimPlan
from curlfx.planning.target import MEASURED, Amount, Target, parse_targets
from curlfx.planning.units import Ints

Keep = Mapping[GroupId, tuple[int, ...]]
ScoreFunction = Callable[[TracedModel, Coupling], Scores]
"""Scores of a network with its own coupling: the dense one first, then what every step left of it."""


def prune_iteratively(
    traced: TracedModel,
    coupling: Coupling,
    score: ScoreFunction,
    target: Mapping[str, Amount] = HALF,
    steps: int = 2,
    *,
    per: Per = "auto",
    **options: Any,
) -> SlimPlan:
    """One plan for the dense network, made in steps: plan, slim, score the slim network again, and so on.

    Every step goes an equal part of the way from the dense network to the target; what is gone stays gone. Floor and
    rounding are those of the dense network. One step is `plan`. The networks in between are not trained.

    Args:
        traced: The dense network.
        coupling: Its channels.
        score: Called ``steps`` times, or less often where rounding has already reached the next step.
        target: As for `plan`.
        steps: How often the channels are scored.
        per: As for `plan`; of the network that is scored.
        options: Of `plan`: ``round_to``, ``floor``, ``allocation``, ``global_pruning``, ``costs``.

    Raises: as `plan`; TargetError for less than one step; PlanError when a slim network has other groups than the
        dense one.
    Source: iterative pruning without retraining in between as ``iterative_steps`` of Torch-Pruning.
    """
    if type(steps) is not int or steps < 1:
        raise TargetError(f"steps = {steps!r}: want a whole number of at least 1")
    costs = options.pop("costs", None) or CostModel(traced, coupling)
    if steps == 1:
        return plan(traced, coupling, score(traced, coupling), target, per=per, costs=costs, **options)
    options["allocation"] = options.get("allocation") or "global"
    _check_steps(options["allocation"], per)
    targets = parse_targets(target, costs.dense)
    scores = score(traced, coupling)
    allocation = options["allocation"] if options.get("global_pruning", True) else "uniform"
    per = resolve_per(per, scores.criterion, allocation, target)
    scores = priced(scores, per, costs, coupling)
    bounds = [*(_amounts(targets, number, steps) for number in range(1, steps)), target]
    found = plan(traced, coupling, scores, bounds[0], per="channel", costs=costs, **options)
    for number in range(2, steps + 1):
        if not all(on_the_way(each, number, steps).met(found.after) for each in targets):
            scores = of_what_is_left(coupling, found.keep, _scored(traced, coupling, found.keep, score, per))
            found = plan(traced, coupling, scores, bounds[number - 1], per="channel", costs=costs, **options)
    return found.model_copy(update={"target": dict(target), "per": name_of(per)})


def _check_steps(allocation: object, per: Per) -> None:
    """Raises: PlanError for what can only be done in one step."""
    if allocation in SOLVERS:
        raise PlanError(f"allocation = {allocation!r} chooses all widths in one step; want steps=1")
    if per == "latency":
        raise PlanError("per = 'latency': the table is of the dense network alone; want steps=1, or per='padded_macs'")


def on_the_way(target: Target, number: int, steps: int) -> Target:
    """The bound after so many of the steps from the dense network to the target."""
    limit = target.dense - (target.dense - target.limit) * number / steps
    return Target(target.quantity, limit, target.dense)


def _amounts(targets: Sequence[Target], number: int, steps: int) -> dict[str, Amount]:
    """The same as absolute amounts, down to a whole number of operations, elements, bytes or nanoseconds."""
    amounts: dict[str, Amount] = {}
    for target in targets:
        limit = on_the_way(target, number, steps).limit
        if target.quantity in MEASURED:
            whole, rest = divmod(int(limit * 10**6), 10**6)
            amounts[target.quantity] = f"{whole}.{rest:06d}"
        else:
            amounts[target.quantity] = max(int(limit), 1)
    return amounts


def _scored(traced: TracedModel, coupling: Coupling, keep: Keep, score: ScoreFunction, per: Per) -> Scores:
    """Scores of what a keep set leaves, by its own coupling."""
    slim, _ = run(traced, [Slim(coupling, keep)])
    left = couple(slim, frozen=frozen_names(coupling), rules=coupling.rules)
    scores = score(slim, left)
    scores.check(left)
    return priced(scores, per, CostModel(slim, left), left)


def of_what_is_left(coupling: Coupling, keep: Keep, scores: Scores) -> Scores:
    """Scores of a slim network for the channels of the dense one; what is gone scores less than all that is left.

    A group of which one channel is left is no group of the slim network any more, and stays as it is. In blocks that
    are gone as a whole stands what is left of the others, so that they do not change the rank of a unit.
    Raises: PlanError.
    """
    lowest = min((float(values.min(initial=0)) for values in scores.values.values()), default=0.0) - 1
    there = still_there(coupling, keep)
    lifted: dict[GroupId, Values] = {}
    for group in coupling.groups:
        kept = np.isin(np.arange(group.width), keep.get(group.id, range(group.width)))
        left = np.flatnonzero(kept & there[group.channels])
        found = scores.values.get(group.id, np.zeros(1))
        if found.size != left.size:
            number = found.size if group.id in scores.values else "no such group"
            raise PlanError(
                f"group '{group.id}' has {left.size} channels left, the slim network has {number} of them; "
                "prune this network in one step (steps=1, in a run iterative_steps=1)"
            )
        lifted[group.id] = np.full(group.width, lowest)
        lifted[group.id][left] = found
        if group.blocks is not None:
            _fill_blocks(lifted[group.id], np.asarray(group.blocks), there[group.channels])
    return Scores(scores.criterion, lifted, scores.details)


def still_there(coupling: Coupling, keep: Keep) -> Bools:
    """Which channels ``(N + 1,)`` some element still belongs to: those in blocks that are gone do not."""
    cells = coupling.cells
    used = np.unique(cells.number)
    living = used[cells.alive(coupling.alive(keep))[used]]
    there = np.zeros(coupling.total + 1, bool)
    there[cells.channels[living]] = True
    return there


def _fill_blocks(values: Values, blocks: Ints, there: Bools) -> None:
    """Give the blocks of which nothing is there the mean of the others, rank by rank."""
    numbers = np.unique(blocks)
    whole = {number: bool(there[blocks == number].any()) for number in numbers.tolist()}
    rows = [np.sort(values[blocks == number]) for number, is_there in whole.items() if is_there]
    for number, is_there in whole.items():
        if not is_there:
            values[blocks == number] = np.mean(rows, axis=0)
