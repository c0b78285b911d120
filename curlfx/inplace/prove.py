"""Whether the narrowed module computes what the slim graph computes, and if not, where they part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from curlfx.graph import TracedModel, where
from curlfx.inplace.calls import modules_around
from curlfx.inplace.fault import Fault

BOUND = 1e-9
"""Largest relative error accepted in float64."""

NATIVE_BOUNDS = {torch.float64: BOUND, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The same for a network that runs in no other type than its own, by its parameters' type."""

_NOISE = 0.1


def parting(slim: TracedModel, found: TracedModel) -> Fault | None:
    """Where the graph of the narrowed module parts from the slim graph; None where they compute the same.

    They must hold the same values under the same names. Then both get the same random inputs, in float64 where the
    network runs in it, and the same noise on their parameters: a branch whose last scale is 0, as at the beginning of
    training, would show nothing otherwise.
    """
    if slim.dynamic_batch and not found.dynamic_batch:
        note = next((note for note in found.notes if "batch size" in note), "the batch size is fixed")
        return Fault(f"the narrowed module takes one batch size only: {note}")
    unlike = _unlike(slim, found)
    if unlike is not None:
        reader = next(iter(found.node_of(unlike).users), None)
        line = "" if reader is None else where(reader)
        return Fault(f"'{unlike}' holds other values in the narrowed module", unlike.rpartition(".")[0], line)
    inputs = _random(found.example_inputs)
    try:
        return _compared(slim, found, inputs, torch.float64, BOUND)
    except RuntimeError:  # the slim graph has a cast in it and runs in its own type only
        return _compared(slim, found, inputs, None, _native_bound(slim))


def _unlike(slim: TracedModel, found: TracedModel) -> str | None:
    """Name of the first tensor that the slim graph reads and the other model holds with other values."""
    held = found.tensors()
    read = {node.target for node in slim.graph.find_nodes(op="get_attr")}
    for name, tensor in slim.tensors().items():
        if name in held and name in read:
            same = tensor.shape == held[name].shape and torch.equal(tensor, held[name])
            if not same and not torch.allclose(tensor, held[name], rtol=0.0, atol=0.0, equal_nan=True):
                return name
    return None


def _compared(
    slim: TracedModel, found: TracedModel, inputs: tuple[Any, ...], dtype: torch.dtype | None, bound: float
) -> Fault | None:
    """Run both in eval mode on noisy parameters. Raises: RuntimeError when the slim graph does not run in the type."""
    one = _cast(slim, dtype, {})
    other = _cast(found, dtype, dict(one.module.named_parameters()))
    given = pytree.tree_map_only(Tensor, lambda x: _to(x, dtype), inputs)
    wanted = _outputs(one.module, given)
    error = _distance(wanted, _outputs(other.module, given))
    if error <= bound:
        return None
    return _first_difference(_cast(slim, dtype, dict(one.module.named_parameters())), other, given, bound) or Fault(
        f"the narrowed module's output is off by {error:.1e}, want at most {bound:.0e}"
    )


def _cast(traced: TracedModel, dtype: torch.dtype | None, given: dict[str, Tensor]) -> TracedModel:
    """A copy in eval mode, of another type, with the given parameters, or with noise on its own."""
    result = traced.clone()
    result.module.eval()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    with torch.no_grad():
        for name, tensor in result.tensors().items():
            if not isinstance(tensor, nn.Parameter):
                tensors[name] = _to(tensor, dtype).clone()
            else:
                tensors[name] = given[name] if name in given else _noisy(_to(tensor, dtype), generator)
    result.set_parameters(tensors)
    return result


def _noisy(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    scale = float(tensor.abs().mean()) or 1.0
    return tensor + _NOISE * scale * torch.randn(tensor.shape, generator=generator).to(tensor)


def _to(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _random(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of the same shapes and about the same values; whole numbers and masks stay."""
    generator = torch.Generator().manual_seed(0)

    def draw(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        spread = float(x.std()) if x.numel() > 1 else 0.0
        return torch.randn(x.shape, generator=generator).to(x) * (spread or 1.0) + x.mean()

    return pytree.tree_map_only(Tensor, draw, inputs)  # type: ignore[no-any-return]


def _native_bound(traced: TracedModel) -> float:
    dtypes = {tensor.dtype for tensor in traced.module.parameters() if tensor.is_floating_point()}
    return max((NATIVE_BOUNDS.get(dtype, BOUND) for dtype in dtypes), default=BOUND)


def _outputs(module: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return _tensors(module(*pytree.tree_map_only(Tensor, torch.clone, inputs)))


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _distance(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over the largest wanted value, the worst over all; infinite for other shapes or counts."""
    if len(wanted) != len(found):
        return math.inf
    return max(map(_relative_error, wanted, found), default=0.0)


def _relative_error(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return math.inf
    if wanted.numel() == 0 or torch.equal(wanted, found):
        return 0.0
    wanted, found = wanted.to(torch.float64), found.to(torch.float64)
    if not bool(torch.isfinite(wanted).all() and torch.isfinite(found).all()):
        return 0.0 if torch.allclose(wanted, found, rtol=BOUND, atol=0.0, equal_nan=True) else math.inf
    return float((wanted - found).abs().max()) / (float(wanted.abs().max()) or 1.0)


def _first_difference(slim: TracedModel, found: TracedModel, inputs: tuple[Any, ...], bound: float) -> Fault | None:
    """The first call that computes something else in the two graphs, which come from the same code."""
    with torch.no_grad():
        for (wanted, value), (node, other) in itertools.zip_longest(
            _values(slim, inputs), _values(found, inputs), fillvalue=(None, None)
        ):
            if wanted is None or node is None or wanted.target is not node.target:
                return None  # another course of the code; the rest cannot be set side by side
            error = _distance(_tensors(value), _tensors(other))
            if not error <= bound:
                module = modules_around(node)[-1:] or [""]
                return Fault(_difference(node, value, other, error), module[0], where(node))
    return None


def _values(traced: TracedModel, inputs: tuple[Any, ...]) -> Iterator[tuple[Node | None, Any]]:
    """Every call of a graph with the value it gives, as the graph runs."""
    interpreter = Interpreter(traced.module)
    placed = iter(traced.graph._codegen.process_inputs(*pytree.tree_map_only(Tensor, torch.clone, inputs)))
    for node in traced.graph.nodes:
        if node.op != "output":
            interpreter.env[node] = next(placed) if node.op == "placeholder" else interpreter.run_node(node)
            if node.op == "call_function":
                yield node, interpreter.env[node]


def _difference(node: Node, value: Any, other: Any, error: float) -> str:
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    if isinstance(value, Tensor) and isinstance(other, Tensor) and value.shape != other.shape:
        return f"{name} gives {tuple(other.shape)} here, {tuple(value.shape)} in the slim graph"
    return f"{name} computes something else here than in the slim graph (off by {error:.1e})"
