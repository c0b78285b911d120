"""From an `nn.Module` to a `TracedModel`, through `torch.export`."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import Graph, GraphModule
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from curlfx.errors import InvariantError, TraceError, first_line
from curlfx.graph import fold
from curlfx.graph.clean import clean, free_layouts
from curlfx.graph.forward import Forward, check_reads, described_forward, replaced_forward
from curlfx.graph.inline import inline
from curlfx.graph.notes import lost_in_eval, unused_parameters
from curlfx.graph.provenance import annotate, modules_in_eval
from curlfx.graph.shapes import propagate
from curlfx.graph.shuffle import name_shuffles
from curlfx.graph.source import raised_at
from curlfx.graph.traced import TracedModel, TracedModule, owner_of, tree

_RESERVED = frozenset(dir(GraphModule)) | {"meta", "shape_env"}


@torch.inference_mode(False)
def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    dynamic_batch: bool = True,
    forward: Forward | None = None,
    fold_weights: bool = True,
) -> TracedModel:
    """Trace a network in inference mode into an FX graph in the ATen dialect that owns a copy of the weights.

    The model is left as it was, its mode included. With ``dynamic_batch`` the first axis of every tensor input may take
    any size, and an example of batch 1 is doubled, because export would fix a size of 1. Where the network does not
    allow a free batch size, the graph has the example's and a note says so.

    Args:
        forward: A function ``forward(model, *inputs)`` to trace in place of the model's own ``forward``, for a model
            whose own cannot be exported or does more than matters. Parameters keep their names; those that it does not
            read stay as they are, and a note names them.
        fold_weights: Let weights that the network computes from its parameters alone (weight standardisation, weight
            and spectral norm) be parameters of their own, so that channels can go; a note names them.

    Shapes: example inputs as the ``forward`` takes them, batch first.
    Raises: TraceError naming the line of the user's code that `torch.export` refuses, or saying that the model itself
        fails on the example inputs, or that ``forward`` is no function or reads no parameter.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"model is a {type(model).__name__}, want a torch.nn.Module")
    inputs = _checked(example_inputs)
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in _RESERVED:
            raise TraceError(f"the model's '{name}' has the name of an attribute of torch.fx.GraphModule; rename it")
    if forward is None:
        traced = _traced(model, inputs, dynamic_batch, model.modules())
    else:
        with replaced_forward(model, forward) as called:
            traced = _traced(model, inputs, dynamic_batch, called)
        check_reads(model, {str(node.target) for node in traced.graph.find_nodes(op="get_attr")}, forward)
    if fold_weights:
        fold.fold_weights(traced)
    return traced


def _traced(model: nn.Module, inputs: tuple[Any, ...], dynamic: bool, modules: Iterable[nn.Module]) -> TracedModel:
    """The graph of ``model(*inputs)``; ``modules`` are those whose ``forward`` is traced, once it has been."""
    with _exporting(model) as frozen:
        if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            _try_forward(model, inputs)  # which gives lazy parameters their shapes
        export = _exported(model, inputs, dynamic)
        module, notes = _unlifted(export.program, model, frozen)
    notes = (*notes, *lost_in_eval(modules, module.graph), *unused_parameters(module))
    traced = TracedModel(module, export.inputs, (*export.notes, *notes), export.dynamic_batch)
    try:
        propagate(traced)
        name_shuffles(traced)
    except InvariantError as cause:
        raise TraceError(f"the exported graph cannot be run on shapes alone: {cause}") from cause
    return traced


def _checked(example_inputs: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, tuple):
        raise TraceError(f"example_inputs is a {type(inputs).__name__}, want a tensor or a tuple of positional inputs")
    return pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)  # type: ignore[no-any-return]


def _batch(inputs: tuple[Any, ...]) -> int | None:
    return next((x.shape[0] for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim), None)


def _doubled(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if _batch(inputs) != 1:
        return inputs
    return pytree.tree_map_only(  # type: ignore[no-any-return]
        Tensor, lambda x: torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x, inputs
    )


@contextlib.contextmanager
def _exporting(model: nn.Module) -> Iterator[frozenset[str]]:
    """Put the model in eval mode for a while; gives the names of the modules that stay in eval when it trains."""
    was_training = model.training
    modes = [(module, module.training) for module in model.modules()]
    fast_path, logged = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    try:
        frozen = modules_in_eval(model)
        model.eval()
    except NotImplementedError as error:
        raise TraceError(f"the model refuses to change its mode: {error}; trace the module it was made from") from error
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.ERROR)  # a refused export dumps its graph there and on stderr; what matters is raised
    try:
        with torch.enable_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield frozen
    finally:
        logging.disable(logged)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        if was_training:
            model.train()  # which does whatever the model does beside setting the flags
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _Export:
    program: ExportedProgram
    inputs: tuple[Any, ...]
    dynamic_batch: bool
    notes: tuple[str, ...] = ()


def _exported(model: nn.Module, inputs: tuple[Any, ...], dynamic: bool) -> _Export:
    """Export with a free batch size if one is wanted and allowed, with the example's otherwise."""
    batch = _batch(inputs)
    note = ""
    if dynamic and batch is not None:
        doubled = _doubled(inputs)
        try:
            return _Export(_exported_dynamic(model, doubled), doubled, True)
        except Exception as refusal:  # noqa: BLE001 - export raises what the model's own code raises
            place = raised_at(refusal.__traceback__)
            note = f"the batch size is fixed at {batch}: the network does not allow a free one"
            note = f"{note} ({place})" if place else note
    try:
        program = torch.export.export(model, _fresh(inputs), strict=False)
    except Exception as error:
        _try_forward(model, inputs)
        raise _refused(error) from error
    return _Export(program, inputs, False, (note,) if note else ())


def _exported_dynamic(model: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    inputs = _fresh(inputs)
    shapes = ShapesCollection()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == _batch(inputs):
            shapes[leaf] = {0: Dim.DYNAMIC}
    return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)


def _fresh(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies: export marks the axes it was told are dynamic on the tensors themselves."""
    return pytree.tree_map_only(Tensor, torch.clone, inputs)  # type: ignore[no-any-return]


def _try_forward(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad():
            model(*_fresh(inputs))
    except Exception as error:
        place = raised_at(error.__traceback__)
        raise TraceError(
            f"{place + ': ' if place else ''}{described_forward(model)} fails on the example inputs "
            f"({_described(inputs)}): {first_line(error)}; give inputs of the shape and type it takes"
        ) from error


def _refused(error: Exception) -> TraceError:
    place = raised_at(error.__traceback__) or "unknown line"
    name = type(error).__name__
    if "DataDependent" in name or "data-dependent" in str(error) or "cond" in name.lower():
        reason = "the control flow depends on values of a tensor"
        advice = "compute it without a branch (torch.where), or trace a function that does without it: trace(forward=…)"
    else:
        reason = f"torch.export refuses the model: {name}: {first_line(error)}"
        advice = "rewrite this line with ordinary tensor operations, or trace a function without it: trace(forward=…)"
    return TraceError(f"{place}: {reason}; {advice}")


def _described(inputs: tuple[Any, ...]) -> str:
    leaves = pytree.tree_leaves(inputs)
    return ", ".join(f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves)


def _unlifted(
    program: ExportedProgram, model: nn.Module, frozen: frozenset[str]
) -> tuple[TracedModule, tuple[str, ...]]:
    """The exported graph over copies of the model's own tensors, at the model's own names; with notes."""
    exported = program.module(check_guards=False)
    graph = Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    graph.set_codegen(exported.graph._codegen)
    notes = inline(graph, exported)
    clean(graph)
    free_layouts(graph)
    annotate(graph, model, frozen)
    root = tree(model, _owned)
    for name in dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr")):
        _keep_constant(root, name, exported)
    module = TracedModule(root, graph)
    return module, notes


def _keep_constant(root: nn.Module, name: str, exported: GraphModule) -> None:
    """Give the copy a constant that the model holds elsewhere than in its buffers: as a buffer that is not saved."""
    path, _, key = name.rpartition(".")
    owner = owner_of(root, name)
    if owner._parameters.get(key) is None and owner._buffers.get(key) is None:
        value = getattr(exported.get_submodule(path), key)
        if isinstance(value, Tensor):
            owner.register_buffer(key, value.detach().clone(), persistent=False)
        else:
            setattr(owner, key, value)


def _owned(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
