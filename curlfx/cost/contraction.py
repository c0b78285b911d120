"""Contractions: the multiply-adds of a graph as iteration spaces.

A contraction multiplies and adds once per point of a box of integer axes, and every operand is read at some of these
axes. That one view gives the MACs of a node (the volume of the box) and, with labels, the MACs that are left when
channels go (the points of the box at which every operand is still there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from curlfx.graph import shape_of
from curlfx.ops.call import concrete
from curlfx.ops.extension import contractions_by
from curlfx.ops.table import Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class Operand:
    """A tensor read (or written) by a contraction.

    Attributes:
        node: Its FX node.
        axes: For each axis of the tensor, the axes of the box that it runs over, outermost first; ``()`` where the
            box says nothing about it (the rows and columns of a convolution's input).
    """

    node: fx.Node
    axes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Contraction:
    """One box of multiply-adds.

    Attributes:
        extents: Sizes of the box.
        operands: Who is read at its points.
        blocks: Axes that split the contraction into independent ones (convolution groups, attention heads).
        channels: Axes that hardware pads to whole vectors; None: every axis that carries labels.
    """

    extents: tuple[int, ...]
    operands: tuple[Operand, ...]
    blocks: tuple[int, ...] = ()
    channels: tuple[int, ...] | None = None

    @property
    def volume(self) -> int:
        """Multiply-adds, for the whole example batch."""
        return math.prod(self.extents)


def contractions(node: fx.Node, rules: Mapping[Any, Rule] = MappingProxyType({})) -> tuple[Contraction, ...]:
    """The contractions that ``node`` computes: one for most, two for attention, none for anything else.

    Args:
        node: A call.
        rules: The user's op rules (`curlfx.ops.extension.OpRule`); they come first.
    """
    own = contractions_by(node.target, rules)
    if own is not None:
        return tuple(own(node))
    packet = getattr(node.target, "overloadpacket", None)
    rule = CONTRACTIONS.get(packet) if node.op == "call_function" else None
    return rule(node) if rule is not None else ()


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by their schema names, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {argument.name: argument.default_value for argument in schema.arguments}
    bound.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def convolution(node: fx.Node) -> tuple[Contraction, ...]:
    """Convolution, plain or transposed, of any number of spatial axes, with groups.

    Shapes: x ``(N, g*i, *S)``, weight ``(g*o, i, *K)`` (transposed: ``(g*i, o, *K)``), y ``(N, g*o, *T)``; the box is
    ``(N, g, o, i, *T, *K)`` (transposed: ``*S`` for ``*T``).
    Source: aten/src/ATen/native/Convolution.cpp.
    """
    call = arguments(node)
    x, weight, groups = call["input"], call["weight"], int(concrete(call["groups"]))
    transposed = bool(call.get("transposed", False)) or "transpose" in str(node.target)
    rows, inner, *kernel = shape_of(weight)
    outs, ins = (inner, rows // groups) if transposed else (rows // groups, inner)
    spatial = len(kernel)
    places = shape_of(x if transposed else node)[-spatial:]
    batch = math.prod(shape_of(x)[: -spatial - 1])
    kernel_axes = tuple((4 + spatial + axis,) for axis in range(spatial))
    place_axes = tuple((4 + axis,) for axis in range(spatial))
    nowhere: tuple[tuple[int, ...], ...] = ((),) * spatial
    lead: tuple[tuple[int, ...], ...] = ((0,),) * (len(shape_of(x)) - spatial - 1)
    depthwise = groups > 1 and ins == 1
    return (
        Contraction(
            extents=(batch, groups, outs, ins, *places, *kernel),
            operands=(
                Operand(x, (*lead, (1, 3), *(place_axes if transposed else nowhere))),
                Operand(weight, ((1, 3), (2,), *kernel_axes) if transposed else ((1, 2), (3,), *kernel_axes)),
                Operand(node, (*lead, (1, 2), *(nowhere if transposed else place_axes))),
            ),
            blocks=(1,) if groups > 1 and not depthwise else (),
            channels=(1, 2) if depthwise else (2, 3),
        ),
    )


def linear(node: fx.Node) -> tuple[Contraction, ...]:
    """Fully connected layer.

    Shapes: x ``(*R, C)``, weight ``(K, C)`` or ``(C,)``; the box is ``(*R, C, K)``.
    """
    call = arguments(node)
    x, weight = call["input"], call["weight"]
    *rows, inner = shape_of(x)
    outs = shape_of(weight)[:-1]
    last = len(rows)
    weight_axes = (*((last + 1 + axis,) for axis in range(len(outs))), (last,))
    read = Operand(x, tuple((axis,) for axis in range(last + 1)))
    channels = tuple(range(last, last + 1 + len(outs)))
    return (Contraction((*rows, inner, *outs), (read, Operand(weight, weight_axes)), channels=channels),)


def product(left: fx.Node, right: fx.Node) -> tuple[Contraction, ...]:
    """Matrix product with numpy's broadcasting.

    Shapes: left ``(*B, n, k)`` or ``(k,)``, right ``(*B, k, m)`` or ``(k,)``; the box is ``(*B, n, k, m)`` without
    the axes that are not there.
    """
    a, b = shape_of(left), shape_of(right)
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    depth = len(batch)
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    inner = depth + len(rows)
    a_axes = (*_trailing(a[:-2], depth), *((depth,) for _ in rows), (inner,))
    b_axes = (*_trailing(b[:-2], depth), (inner,), *((inner + 1,) for _ in columns))
    extents = (*batch, *rows, a[-1], *columns)
    return (Contraction(extents, (Operand(left, a_axes), Operand(right, b_axes)), blocks=tuple(range(depth))),)


def _trailing(batch: Sequence[int], depth: int) -> tuple[tuple[int, ...], ...]:
    """Box axes of a tensor's batch axes, aligned at the last one."""
    return tuple((depth - len(batch) + axis,) for axis in range(len(batch)))


def _pair(left: str, right: str) -> Callable[[fx.Node], tuple[Contraction, ...]]:
    """The matrix product of the two arguments with these schema names."""

    def rule(node: fx.Node) -> tuple[Contraction, ...]:
        call = arguments(node)
        return product(call[left], call[right])

    return rule


def attention(node: fx.Node) -> tuple[Contraction, ...]:
    """``softmax(q k^T) v``: two contractions.

    Shapes: q ``(*B, H, L, E)``, k ``(*B, H / r, S, E)``, v ``(*B, H / r, S, V)``; boxes ``(*B, H / r, r, L, S, E)``
    and ``(*B, H / r, r, L, S, V)``: grouped queries read each head of k and v r times.
    """
    call = arguments(node)
    query, key, value = call["query"], call["key"], call["value"]
    *batch, length, width = shape_of(query)
    places = shape_of(key)[-2]
    times = 1
    if batch and bool(concrete(call.get("enable_gqa", False))):
        times = batch[-1] // shape_of(key)[-3]
        batch[-1] //= times
    extents, depth = (*batch, times, length, places), len(batch)

    def axes(tensor: fx.Node, rows: int, *, heads: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        own = shape_of(tensor)[:-2]
        lead = _trailing(own, depth)
        return (*lead[:-1], *((heads,) if lead else ()), (rows,), (depth + 3,))

    scores = (
        Operand(query, axes(query, depth + 1, heads=(depth - 1, depth))),
        Operand(key, axes(key, depth + 2, heads=(depth - 1,))),
    )
    mix = (
        Operand(value, axes(value, depth + 2, heads=(depth - 1,))),
        Operand(node, axes(node, depth + 1, heads=(depth - 1, depth))),
    )
    blocks = tuple(range(depth + 1))
    return (
        Contraction((*extents, width), scores, blocks=blocks),
        Contraction((*extents, shape_of(value)[-1]), mix, blocks=blocks),
    )


def tensordot(node: fx.Node) -> tuple[Contraction, ...]:
    """Contraction of the listed axes of two tensors; the box is (free axes of a, contracted axes, free axes of b)."""
    call = arguments(node)
    a, b = call["self"], call["other"]
    dims_a = [axis % len(shape_of(a)) for axis in call["dims_self"]]
    dims_b = [axis % len(shape_of(b)) for axis in call["dims_other"]]
    letters_a = {axis: f"s{position}" for position, axis in enumerate(dims_a)}
    letters_b = {axis: f"s{position}" for position, axis in enumerate(dims_b)}
    indices_a = [letters_a.get(axis, f"a{axis}") for axis in range(len(shape_of(a)))]
    indices_b = [letters_b.get(axis, f"b{axis}") for axis in range(len(shape_of(b)))]
    return (_indexed([(a, indices_a), (b, indices_b)]),)


def einsum(node: fx.Node) -> tuple[Contraction, ...]:
    """Einstein sum, operand by operand from the left: a point for every index that is in both or in the result.

    An index of one operand that the result lacks is summed before anything is multiplied, which costs additions only;
    so an einsum of one tensor has no contraction.
    Source: aten/src/ATen/native/Linear.cpp, ``einsum`` without a path.
    """
    call = arguments(node)
    tensors = tuple(call["tensors"])
    left, arrow, right = str(call["equation"]).replace(" ", "").partition("->")
    terms = [_letters(term, len(shape_of(tensor))) for term, tensor in zip(left.split(","), tensors, strict=True)]
    often = [index for term in terms for index in set(term)]
    hidden = {index for index in often if index.startswith(".")}
    if arrow:
        result = hidden | set(right.replace("...", ""))
    else:
        result = hidden | {index for index in often if sum(term.count(index) for term in terms) == 1}
    needed = result | {index for index in often if often.count(index) > 1}
    steps, current = [], set(terms[0]) & needed
    for last in range(1, len(tensors)):
        box = current | (set(terms[last]) & needed)
        steps.append(_indexed(list(zip(tensors, terms, strict=True))[: last + 1], box))
        current = box & (result | {index for term in terms[last + 1 :] for index in term})
    return tuple(steps)


def _letters(term: str, ndim: int) -> list[str]:
    """Index names of one einsum operand; the axes under ``...`` are named from the last one: ``.1``, ``.0``."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    hidden = ndim - len(before) - len(after)
    return [*before, *(f".{axis}" for axis in reversed(range(hidden))), *after]


def _indexed(operands: Sequence[tuple[fx.Node, Sequence[str]]], box: AbstractSet[str] | None = None) -> Contraction:
    """A contraction given by index names; names outside ``box`` (None: all are in) are no axes of it."""
    sizes: dict[str, int] = {}
    for node, indices in operands:
        for index, size in zip(indices, shape_of(node), strict=True):
            if box is None or index in box:
                sizes[index] = max(size, sizes.get(index, 1))
    axis_of = {index: axis for axis, index in enumerate(sizes)}
    reads = tuple(
        Operand(node, tuple((axis_of[index],) if index in axis_of else () for index in indices))
        for node, indices in operands
    )
    return Contraction(tuple(sizes.values()), reads)


def per_image(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose work grows with the batch: reached from the inputs, or from the size of a batch axis.

    The rest (a network that makes its position bias from a constant table) is done once for any batch.
    """
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            reached.add(node)
        elif any(source in reached for source in node.all_input_nodes):
            is_size = not isinstance(node.meta.get("val"), Tensor | tuple | list)
            if not is_size or _keeps_batch(node):
                reached.add(node)
    return reached


def _keeps_batch(node: fx.Node) -> bool:
    """Whether a node that makes a number speaks of the batch: the size of axis 0, or arithmetic on such a size."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet is not aten.sym_size or str(node.args[1]) == "0"


CONTRACTIONS: Mapping[Any, Callable[[fx.Node], tuple[Contraction, ...]]] = {
    aten.conv1d: convolution,
    aten.conv2d: convolution,
    aten.conv3d: convolution,
    aten.conv_transpose1d: convolution,
    aten.conv_transpose2d: convolution,
    aten.conv_transpose3d: convolution,
    aten.convolution: convolution,
    aten._convolution: convolution,
    aten.linear: linear,
    aten.mm: _pair("self", "mat2"),
    aten.bmm: _pair("self", "mat2"),
    aten.matmul: _pair("self", "other"),
    aten.linalg_matmul: _pair("self", "other"),
    aten.mv: _pair("self", "vec"),
    aten.dot: _pair("self", "tensor"),
    aten.addmm: _pair("mat1", "mat2"),
    aten.addmv: _pair("mat", "vec"),
    aten.baddbmm: _pair("batch1", "batch2"),
    aten.addbmm: _pair("batch1", "batch2"),
    aten.scaled_dot_product_attention: attention,
    aten.einsum: einsum,
    aten.tensordot: tensordot,
}
"""What counts as a MAC, by op; one entry per op, whatever its overloads."""
