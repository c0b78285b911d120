"""What is refused before the training: a target out of reach, a network that is coupled otherwise when it is narrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import BudgetError, PlanError, UsageError
from curlfx.gradual.schedule import Schedule
from curlfx.graph.traced import TracedModel
from curlfx.importance import score
from curlfx.labels.compact import Ints
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning.choose import frozen_names
from curlfx.planning.iterate import of_what_is_left
from curlfx.planning.target import Target
from curlfx.planning.units import Units


def check_reachable(units: Units, gone: Ints, targets: Sequence[Target], costs: CostModel, schedule: Schedule) -> None:
    """Refuse targets that a network misses with everything gone that may go, ``gone`` units of each group, ``(G,)``.

    Raises: BudgetError.
    """
    least = costs.evaluate(units.alive(gone))
    for target in targets:
        if not target.met(least):
            raise BudgetError(
                f"{target.quantity} {target.percent(target.limit):.4g} % of dense cannot be reached: with "
                f"floor={schedule.floor:g} and round_to={schedule.round_to} the least is "
                f"{target.percent(target.value(least)):.3g} %; lower them, raise the target, or freeze fewer layers"
            )


def check_stable(traced: TracedModel, coupling: Coupling, keep: Mapping[str, tuple[int, ...]], floor: float) -> None:
    """Refuse a network in eval mode whose channels are coupled otherwise with nothing but ``keep`` left.

    Raises: UsageError.
    """
    slim, _ = run(traced, [Slim(coupling, keep)], own_weights=False)
    left = couple(slim, frozen=frozen_names(coupling), rules=coupling.rules)
    try:
        of_what_is_left(coupling, keep, score(slim, left, "random"))
    except PlanError as cause:
        raise UsageError(
            f"what floor={floor:g} leaves of this network is coupled otherwise, so it cannot be scored again "
            f"({str(cause).partition(';')[0]}); raise the floor, or freeze this group"
        ) from cause
