"""Carry out a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curlfx.coupling import Coupling
from curlfx.graph.traced import TracedModel
from curlfx.ops.table import Rule
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning.slim_plan import SlimPlan


def slim(
    traced: TracedModel,
    plan: SlimPlan,
    coupling: Coupling | None = None,
    *,
    rules: Mapping[Any, Rule] | None = None,
) -> TracedModel:
    """The network without the channels that the plan leaves out; the input stays as it is.

    Args:
        traced: The dense network, or another of the same architecture: other weights, another device, memory format,
            floating-point type or batch size do not matter.
        plan: From :func:`curlfx.plan` or a JSON file.
        coupling: The coupling the plan was made with; otherwise it is found again, names that were frozen included.
        rules: Rules of ops of one's own that the plan was made with, to find the coupling again.

    Returns:
        A trainable network of its own weights, with the original state-dict keys.

    Raises: PlanError when the plan is for another network, naming the first difference.
    """
    coupling = coupling or plan.couple(traced, rules)
    plan.check(traced, coupling)
    return run(traced, [Slim(coupling, plan.keep)])[0]
