"""Narrow the user's own module in place, or say why not and hand over the graph."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from curlfx.coupling import Coupling
from curlfx.errors import TraceError, UsageError
from curlfx.graph import TracedModel, trace
from curlfx.graph.forward import Forward
from curlfx.inplace.fault import Fault, InPlaceWarning
from curlfx.inplace.journal import Journal
from curlfx.inplace.locate import raised
from curlfx.inplace.narrow import narrow
from curlfx.inplace.prove import parting
from curlfx.inplace.rehearsal import rehearse
from curlfx.inplace.trail import Trail, strays
from curlfx.labels.compact import compact
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning import SlimPlan

_CALLER = 4  # frames from `warnings.warn` up to who called `slim_`, past the decorator


@torch.inference_mode(False)
def slim_(
    model: nn.Module,
    plan: SlimPlan,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    coupling: Coupling | None = None,
    traced: TracedModel | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """Carry out a plan on the module itself: the same object, of the same class, with narrower layers.

    Parameters and buffers are replaced by narrower ones (make the optimizer afterwards), the widths that layers keep
    as attributes follow, and the module is traced again and compared with the slim graph, in float64 where it runs in
    it. What only training does (dropped branches, dropout) stays, since the module's own code stays.

    Where that code has a width written into it, the module is put back as it was, to the very same parameters, an
    `InPlaceWarning` says which line it is, and the slim graph is returned in its place.

    Args:
        model: Changed, or left entirely as it was.
        plan: For this model.
        example_inputs: As for :func:`curlfx.trace`; may be left out where ``traced`` is given.
        coupling: The coupling the plan was made with, needed where it was made with rules of one's own; otherwise it
            is found again, names that were frozen included.
        traced: The model's graph, where the caller has it: it is not traced again if these are its present weights.
        forward: As for :func:`curlfx.trace`, and given where the plan's network was traced with it: what is compared
            is ``forward(model, *inputs)``, and the model's own ``forward`` is not run.

    Returns:
        ``model``; or, after a warning, a traced network of its own weights that computes what ``model`` should.

    Raises: PlanError when the plan is for another network; TraceError when the model cannot be traced; UsageError
        when there is neither ``example_inputs`` nor ``traced``.
    """
    if example_inputs is None:
        if traced is None:
            raise UsageError("slim_ needs example_inputs, or the model's graph as traced=")
        example_inputs = traced.example_inputs
    if traced is not None and _is_of(traced, model):
        dense = traced.clone()
        dense.module.eval()
    else:
        dense = trace(model, example_inputs, forward=forward)
    coupling = coupling or plan.couple(dense)
    plan.check(dense, coupling)
    slim, (record,) = run(dense, [Slim(coupling, plan.keep)], own_weights=False)
    if not record.changed:
        return model
    alive = coupling.cells.alive(coupling.alive(plan.keep))
    job = _Job(model, dense, slim, example_inputs, forward)
    try:
        fault = narrow(
            model,
            dense,
            slim,
            lambda name, tensor: compact(tensor, coupling.parameter_labels(name), alive),
            job.journal,
        ) or _fault(job)
    except BaseException:
        job.journal.undo()
        raise
    if fault is not None:
        job.journal.undo()
        return _instead(job, fault)
    if forward is None:
        _check_training(job)
    return model


@dataclass(frozen=True)
class _Job:
    """One module being narrowed."""

    model: nn.Module
    dense: TracedModel
    slim: TracedModel
    inputs: Tensor | tuple[Any, ...]
    forward: Forward | None
    journal: Journal = field(default_factory=Journal)


def _is_of(traced: TracedModel, model: nn.Module) -> bool:
    """Whether every tensor that a graph reads is the model's, as it is now."""
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    read = {str(node.target) for node in traced.graph.find_nodes(op="get_attr")}
    pairs = [(tensor, held.get(name)) for name, tensor in traced.tensors().items() if name in read]
    return all(
        other is not None
        and (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device)
        and torch.equal(tensor, other)
        for tensor, other in pairs
    )


def _fault(job: _Job) -> Fault | None:
    """What is wrong with the narrowed module; None when it computes what the slim graph does."""
    try:
        found = trace(job.model, job.inputs, forward=job.forward)
    except TraceError as error:
        refusal = raised(job.model, error)
    else:
        return parting(job.slim, found)
    return _strayed(job) or refusal


def _strayed(job: _Job) -> Fault | None:
    """Where a narrowed module that fails first does something that the slim graph does not."""
    after, before = Trail(job.model), Trail(job.model)
    failed = rehearse(job.model, job.dense.example_inputs, training=False, forward=job.forward, watch=after)
    job.journal.undo()
    rehearse(job.model, job.dense.example_inputs, training=False, forward=job.forward, watch=before)
    job.journal.redo()
    fault = strays(before.steps, after.steps, job.dense, job.slim)
    if fault is None or failed is None or (fault.module, fault.line) == (failed.module, failed.line):
        return fault
    return replace(fault, reason=f"{fault.reason}; then {failed}")


def _instead(job: _Job, fault: Fault) -> nn.Module:
    """The slim graph with weights of its own, in the model's mode; says why."""
    warnings.warn(
        InPlaceWarning(
            f"the {type(job.model).__name__} stays as it was, and slim_ returns its slim graph in its place. {fault}. "
            "To narrow the module itself, take the width from a tensor's shape there, or freeze the layers concerned",
            fault,
        ),
        stacklevel=_CALLER,
    )
    return copy.deepcopy(job.slim).module.train(job.model.training)


def _check_training(job: _Job) -> None:
    """Warn of what only training does where it reads channels that are gone."""
    inputs = job.dense.example_inputs
    fault = rehearse(job.model, inputs, training=True)
    if fault is None:
        return
    job.journal.undo()
    before = rehearse(job.model, inputs, training=True)
    job.journal.redo()
    if before is None:
        warnings.warn(
            InPlaceWarning(
                f"the {type(job.model).__name__} is narrow and right in inference, but forward in training mode fails, "
                f"since the plan does not know what only training does. {fault}. Remove that part, or freeze the layer "
                "it reads",
                fault,
            ),
            stacklevel=_CALLER,
        )
