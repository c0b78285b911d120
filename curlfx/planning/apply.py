"""Carry out a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from curlfx.coupling import Coupling
from curlfx.errors import UsageError
from curlfx.graph.traced import TracedModel
from curlfx.ops.table import Rule
from curlfx.passes.absorb_bias import AbsorbBias
from curlfx.passes.base import Pass
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning.slim_plan import SlimPlan

Absorb = Literal["none", "exact", "mean"]


def slim(
    traced: TracedModel,
    plan: SlimPlan,
    coupling: Coupling | None = None,
    *,
    absorb_bias: Absorb = "none",
    rules: Mapping[Any, Rule] | None = None,
) -> TracedModel:
    """The network without the channels that the plan leaves out; the input stays as it is.

    Args:
        traced: The dense network, or another of the same architecture: other weights, another device, memory format,
            floating-point type or batch size do not matter.
        plan: From :func:`curlfx.plan` or a JSON file.
        coupling: The coupling the plan was made with; otherwise it is found again, names that were frozen included.
        absorb_bias: Whether the biases behind removed channels take over what these would still emit when the part that
            depends on the images is gone: ``"exact"`` where that is the same at every position, ``"mean"`` otherwise
            its mean over positions, as behind zero padding (`curlfx.passes.absorb_bias.AbsorbBias`).
        rules: Rules of ops of one's own that the plan was made with, to find the coupling again.

    Returns:
        A trainable network of its own weights, with the original state-dict keys.

    Raises: PlanError when the plan is for another network, naming the first difference; UsageError for another word
        than these, and when biases are to be absorbed in a network in training mode.
    """
    coupling = coupling or plan.couple(traced, rules)
    plan.check(traced, coupling)
    passes: list[Pass] = [Slim(coupling, plan.keep)]
    if absorb_bias in ("exact", "mean"):
        passes.insert(0, AbsorbBias(coupling, plan.keep, absorb_bias))
    elif absorb_bias != "none":
        raise UsageError(f"absorb_bias = {absorb_bias!r}: want 'none', 'exact' or 'mean'")
    return run(traced, passes)[0]
