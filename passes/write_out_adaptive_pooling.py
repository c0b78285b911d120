"""Write adaptive pooling, which ONNX does not have, as ordinary pooling, products or maxima of windows."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from curlfx.errors import InvariantError
from curlfx.graph import TracedModel, propagate, shape_of
from curlfx.passes.base import Pass

_ATEN = torch.ops.aten
_MEANS: dict[Any, tuple[int, Any]] = {
    _ATEN.adaptive_avg_pool1d.default: (1, _ATEN.avg_pool1d.default),
    _ATEN.adaptive_avg_pool2d.default: (2, _ATEN.avg_pool2d.default),
    _ATEN.adaptive_avg_pool3d.default: (3, _ATEN.avg_pool3d.default),
}
_MAXIMA: dict[Any, tuple[int, Any]] = {
    _ATEN.adaptive_max_pool1d.default: (1, _ATEN.max_pool1d.default),
    _ATEN.adaptive_max_pool2d.default: (2, _ATEN.max_pool2d.default),
    _ATEN.adaptive_max_pool3d.default: (3, _ATEN.max_pool3d.default),
}
_POOLS = {**_MEANS, **_MAXIMA}

Call = Callable[..., Node]
Windows = list[tuple[int, int]]


@dataclass(frozen=True)
class WriteOutAdaptivePooling(Pass):
    """Write adaptive average and maximum pooling with the windows that the traced sizes give.

    Windows of one size and distance are an ordinary pooling. Others are taken along one axis after the other: a mean as
    the product with a constant matrix, a maximum as the maximum of the gathered windows. A mean of everything is a
    mean: where channels come last in memory (ConvNeXt), the exporter would gather its elements by computed positions. A
    maximum of everything stays (the exporter has it), and so do a maximum whose positions are read and sizes that
    follow the batch.

    Source: window ``i`` of ``n`` over ``s`` elements is ``[floor(i s / n), ceil((i + 1) s / n))``, as in torch's
    aten/src/ATen/native/AdaptivePooling.h.
    """

    name: ClassVar[str] = "write-out-adaptive-pooling"

    def rewrite(self, traced: TracedModel) -> bool:
        """Replace every such node, in graph order."""
        found = _found(traced)
        for node in found:
            with traced.graph.inserting_before(node):
                result = _written_out(traced, node)
            for read in [node] if node.target in _MEANS else list(node.users):
                result.meta["val"] = read.meta["val"]  # another pooling may read it
                read.replace_all_uses_with(result)
        return bool(found)

    def ensures(self, before: TracedModel, after: TracedModel) -> None:  # noqa: ARG002 - only the result matters
        """Check that nothing is left that could be written out.

        Raises: InvariantError.
        """
        for node in _found(after):
            raise InvariantError(f"node '{node.name}' is left and could be written out")


def windows(size: int, count: int) -> Windows:
    """First element and end of every window of an adaptive pooling of ``size`` elements to ``count``."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def step(found: Windows) -> tuple[int, int] | None:
    """Length and distance of windows that an ordinary pooling has too; None where they differ."""
    lengths = {end - start for start, end in found}
    steps = {later[0] - former[0] for former, later in pairwise(found)} or {found[-1][1]}
    return (lengths.pop(), steps.pop()) if len(lengths) == len(steps) == 1 and 0 not in steps else None


def _found(traced: TracedModel) -> list[Node]:
    nodes = [node for node in traced.graph.nodes if node.op == "call_function" and node.target in _POOLS]
    nodes = [node for node in nodes if not _tells_positions(node) and (node.target in _MEANS or not _is_whole(node))]
    fixed = _of_fixed_size(traced) if not all(map(_is_whole, nodes)) else set()
    return [node for node in nodes if node in fixed or _is_whole(node)]


def _sizes(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes before and after the pooling, along the axes that it pools."""
    axes, _ = _POOLS[node.target]
    value = node.meta["val"]
    after = value if isinstance(value, Tensor) else value[0]
    return shape_of(node.args[0])[-axes:], tuple(after.shape[-axes:])  # type: ignore[arg-type]


def _is_whole(node: Node) -> bool:
    """Whether one window takes everything, along every axis."""
    return set(_sizes(node)[1]) == {1}


def _tells_positions(node: Node) -> bool:
    """Whether anything but the first result of a maximum is read."""
    return node.target in _MAXIMA and any(
        reader.target is not operator.getitem or reader.args[1] != 0 for reader in node.users
    )


def _of_fixed_size(traced: TracedModel) -> set[Node]:
    """The pooling nodes whose sizes do not follow the batch."""
    nodes = [node for node in traced.graph.nodes if node.target in _POOLS]
    if not traced.dynamic_batch:
        return set(nodes)
    larger = traced.clone()
    larger.example_inputs = pytree.tree_map_only(
        Tensor, lambda x: torch.cat([x, x[:1]]) if x.dim() else x, traced.example_inputs
    )
    propagate(larger)
    twins = [node for node in larger.graph.nodes if node.target in _POOLS]
    return {node for node, twin in zip(nodes, twins, strict=True) if _sizes(node) == _sizes(twin)}


def _written_out(traced: TracedModel, node: Node) -> Node:
    """The nodes that compute what a pooling node does; returns the last."""
    axes, ordinary = _POOLS[node.target]
    before, after = _sizes(node)

    def call(target: Any, *args: Any) -> Node:
        made = traced.graph.call_function(target, args)
        made.meta = {kept: held for kept, held in node.meta.items() if kept != "val"}
        return made

    if _is_whole(node):
        return call(_ATEN.mean.dim, node.args[0], list(range(-axes, 0)), True)
    along = [windows(size, count) for size, count in zip(before, after, strict=True)]
    steps = [one for found in along if (one := step(found)) is not None]
    if len(steps) == axes:
        return call(ordinary, node.args[0], [length for length, _ in steps], [distance for _, distance in steps])
    result: Any = node.args[0]
    for axis, (size, found) in enumerate(zip(before, along, strict=True), -axes):
        if len(found) == size:
            continue
        if node.target in _MEANS:
            result = _mean(call, result, axis, _constant(traced, _averaging(found).to(node.meta["val"].dtype)))
        else:
            result = _maximum(call, result, axis, _constant(traced, _places(found)), len(found))
    return result  # type: ignore[no-any-return]


def _averaging(found: Windows) -> Tensor:
    """The matrix of shape ``(elements, windows)`` whose product with elements is the means of windows."""
    matrix = torch.zeros(found[-1][1], len(found), dtype=torch.float64)
    for column, (start, end) in enumerate(found):
        matrix[start:end, column] = 1 / (end - start)
    return matrix


def _places(found: Windows) -> Tensor:
    """The elements of all windows, one window after the other; a short one repeats its last element."""
    longest = max(end - start for start, end in found)
    return torch.tensor([min(start + i, end - 1) for start, end in found for i in range(longest)])


def _mean(call: Call, source: Node, axis: int, matrix: Node) -> Node:
    """Means of windows along an axis."""
    if axis == -1:
        return call(_ATEN.matmul.default, source, matrix)
    turned = call(_ATEN.transpose.int, source, axis, -1)
    return call(_ATEN.transpose.int, call(_ATEN.matmul.default, turned, matrix), axis, -1)


def _maximum(call: Call, source: Node, axis: int, places: Node, count: int) -> Node:
    """Maxima of windows along an axis."""
    gathered = call(_ATEN.index_select.default, source, axis, places)
    return call(_ATEN.amax.default, call(_ATEN.unflatten.int, gathered, axis, [count, -1]), [axis])


def _constant(traced: TracedModel, value: Tensor) -> Node:
    """A buffer of its own for a constant."""
    held = traced.tensors()
    device = next((tensor.device for tensor in held.values()), torch.device("cpu"))
    number = 0
    while f"curlfx_windows_{number}" in held:
        number += 1
    traced.add_buffer(f"curlfx_windows_{number}", value.to(device))
    return traced.node_of(f"curlfx_windows_{number}")
