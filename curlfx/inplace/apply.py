"""Narrow the user's own module in place, or say why not and hand over the graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curlfx.coupling import Coupling
from curlfx.errors import ModelError, TraceError, UsageError
from curlfx.graph import TracedModel, trace
from curlfx.inplace.fault import Fault, InPlaceWarning
from curlfx.inplace.journal import Journal
from curlfx.inplace.locate import raised
from curlfx.inplace.narrow import narrow
from curlfx.inplace.prove import parting
from curlfx.inplace.training import training_fault
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning import SlimPlan

Forward = Callable[..., Any]


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
    it. What only training does (dropped branches, auxiliary heads) stays, since the module's own code stays.

    Where that code has a width written into it, the module is put back as it was, to the very same parameters, an
    :class:`InPlaceWarning` says which line it is, and the slim graph is returned in its place.

    Args:
        model: Changed, or left entirely as it was.
        plan: For this model.
        example_inputs: As for :func:`curlfx.trace`; may be left out where ``traced`` is given.
        coupling: The coupling the plan was made with, needed where it was made with rules of one's own;
            otherwise it is found again, names that were frozen included.
        traced: The model's graph, where the caller has it; the weights are the model's all the same.
        forward: As for :func:`curlfx.trace`: ``forward(model, *inputs)`` is what is compared.

    Returns:
        ``model``, or, after a warning, a traced network of its own weights that computes the same as ``model`` should.

    Raises: PlanError when the plan is for another network; TraceError when the model cannot be traced; ModelError when
        ``traced`` is of another model; UsageError when there is neither ``example_inputs`` nor ``traced``.
    """
    if traced is None and example_inputs is None:
        raise UsageError("slim_ needs example_inputs, or the model's graph as traced=")
    dense = _traced(model, example_inputs, forward) if traced is None else _as_the_model(traced, model)
    if example_inputs is None:
        example_inputs = dense.example_inputs
    coupling = coupling or plan.couple(dense)
    plan.check(dense, coupling)
    slim, (record,) = run(dense, [Slim(coupling, plan.keep)], own_weights=False)
    if not record.changed:
        return model
    journal = Journal()
    try:
        fault = narrow(model, dense, slim, journal) or _fault(model, slim, example_inputs, forward)
    except BaseException:
        journal.undo()
        raise
    if fault is not None:
        journal.undo()
        return _instead(slim, model, fault)
    if forward is None:
        _check_training(model, example_inputs, journal)
    return model


def _traced(model: nn.Module, example_inputs: Any, forward: Forward | None) -> TracedModel:
    return trace(model, example_inputs) if forward is None else trace(model, example_inputs, forward=forward)


def _as_the_model(traced: TracedModel, model: nn.Module) -> TracedModel:
    """The graph over the model's own tensors as they are now. Raises: ModelError when they do not fit it."""
    dense = traced.clone()
    dense.module.eval()
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in traced.module.named_parameters():
        found = held.get(name)
        if found is None:
            raise ModelError(f"traced= is of another model: this one has no parameter '{name}'")
        for what in ("shape", "dtype", "device"):
            wanted, has = getattr(tensor, what), getattr(found, what)
            if wanted != has:
                raise ModelError(
                    f"traced= is of another model: parameter '{name}' has {what} {has} here, {wanted} there"
                )
    tensors = dense.tensors()
    dense.set_parameters({name: tensor for name, tensor in held.items() if name in tensors})
    return dense


def _fault(model: nn.Module, slim: TracedModel, example_inputs: Any, forward: Forward | None) -> Fault | None:
    """What is wrong with the narrowed module; None when it computes what the slim graph does."""
    try:
        found = _traced(model, example_inputs, forward)
    except TraceError as error:
        return raised(model, error)
    return parting(slim, found)


def _instead(slim: TracedModel, model: nn.Module, fault: Fault) -> nn.Module:
    """The slim graph with weights of its own, in the model's mode; says why."""
    warnings.warn(
        InPlaceWarning(
            f"{type(model).__name__} is as it was; slim_ returns its slim graph instead. {fault}. To narrow the module "
            "itself, take the width from a tensor's shape or a layer there, or couple with the layer frozen",
            fault,
        ),
        stacklevel=4,
    )
    result = copy.deepcopy(slim).module
    return result.train(model.training)


def _check_training(model: nn.Module, example_inputs: Any, journal: Journal) -> None:
    """Warn of a path that only training takes and that reads channels which are gone."""
    inputs = pytree.tree_map_only(Tensor, torch.clone, example_inputs)
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    fault = training_fault(model, inputs)
    if fault is None:
        return
    journal.undo()
    before = training_fault(model, inputs)
    journal.redo()
    if before is None:
        warnings.warn(
            InPlaceWarning(
                f"{type(model).__name__} is narrow and right in inference, but what it does only in training does not "
                f"follow, since the plan does not know it: {fault}",
                fault,
            ),
            stacklevel=4,
        )
