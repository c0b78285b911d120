"""How a call's literal arguments follow when tensors get narrower: sizes, split points, pads, groups, scales.

Sizes that the graph computes depend on the batch only (everything else is a literal after export), so a size that
changes is the old one times ``new / old``, which is exact for any batch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from curlfx.errors import InvariantError
from curlfx.labels.compact import Bools
from curlfx.ops.call import concrete
from curlfx.ops.joining import padding
from curlfx.ops.movement import followed_axis

Shape = tuple[int, ...]
Shapes = Callable[[Node], Shape]


class Resizing:
    """A call whose tensors change shape, and the means to rewrite it.

    Args:
        node: The call.
        old: Shapes before (of any node).
        new: Shapes after.
        kept: ``(node, axis) ->`` which positions of that axis stay, ``(n,)`` bool.
        parts: Shapes after, for the outputs of a call with several.
        renumber: Puts a new index vector in place of a constant one: ``(index node, function of its value) -> node``.
        table: Adds a constant vector of positions to the network: ``vector -> node``.
    """

    def __init__(
        self,
        node: Node,
        old: Shapes,
        new: Shapes,
        kept: Callable[[Node, int], Bools],
        parts: Sequence[Shape],
        renumber: Callable[[Node, Callable[[Tensor], Tensor]], Node],
        table: Callable[[Tensor], Node],
    ) -> None:
        self.node = node
        self.old = old
        self.new = new
        self.kept = kept
        self.parts = parts
        self.renumber = renumber
        self.table = table
        self.changed = False

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by schema name, as written."""
        index, found = self._find(name)
        if index < len(self.node.args):
            return self.node.args[index]
        return self.node.kwargs.get(name, found.default_value if found.has_default_value() else default)

    def set(self, name: str, value: Any) -> None:
        """Write an argument by schema name."""
        index, _ = self._find(name)
        if index < len(self.node.args):
            self.node.update_arg(index, value)
        else:
            self.node.update_kwarg(name, value)
        self.changed = True

    def has(self, name: str) -> bool:
        """Whether the op's schema has that argument."""
        return any(argument.name == name for argument in self.node.target._schema.arguments)  # type: ignore[union-attr]

    def source(self) -> Node:
        """The first tensor argument."""
        return self.node.all_input_nodes[0]

    def axis(self, name: str = "dim") -> int:
        """An axis argument, non-negative for the first tensor."""
        return int(self.get(name, 0)) % len(self.old(self.source()))

    def sizes(self, name: str, old: Sequence[int], new: Sequence[int]) -> None:
        """Rewrite a list of sizes entry by entry; -1 stays."""
        written = list(self.get(name))
        offset = len(written) - len(old)
        result = list(written)
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            place = index + offset
            if before != after and written[place] != -1:
                result[place] = self.scaled(written[place], before, after)
        if result != written:
            self.set(name, result)

    def scaled(self, value: Any, before: int, after: int) -> Any:
        """A size as written, for what was ``before`` and is ``after``: computed ones stay computed, for any batch."""
        if not isinstance(value, Node):
            return after
        graph = self.node.graph
        with graph.inserting_before(self.node):
            product = graph.call_function(operator.mul, (value, after))
            return graph.call_function(operator.floordiv, (product, before))

    def _find(self, name: str) -> tuple[int, Any]:
        for index, argument in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                return index, argument
        raise KeyError(name)


def output_sizes(call: Resizing) -> None:
    """view, reshape, expand, zeros: the sizes written are the output's."""
    for name in ("size", "shape"):
        if call.has(name):
            call.sizes(name, call.old(call.node), call.new(call.node))


def unflattened(call: Resizing) -> None:
    """unflatten: the sizes written are those of the new axes."""
    axis, count = call.axis(), len(call.get("sizes"))
    call.sizes("sizes", call.old(call.node)[axis : axis + count], call.new(call.node)[axis : axis + count])


def squeezed(call: Resizing) -> None:
    """squeeze: an axis that is left with one channel stays; the axes that go are named."""
    old, new = call.old(call.source()), call.new(call.source())
    if not any(after == 1 < before for before, after in zip(old, new, strict=True)):
        return
    written = call.get("dim") if call.has("dim") else range(len(old))
    axes = [int(axis) % len(old) for axis in (written if isinstance(written, Sequence) else [written])]
    gone = [axis for axis in axes if old[axis] == 1]
    in_place = call.node.target._schema.is_mutable  # type: ignore[union-attr]
    squeeze = torch.ops.aten.squeeze_.dims if in_place else torch.ops.aten.squeeze.dims
    call.node.target = squeeze if gone else torch.ops.aten.alias.default
    call.node.args = (call.source(), gone) if gone else (call.source(),)
    call.node.kwargs = {}
    call.changed = True


def bounds(call: Resizing) -> None:
    """slice: start and end become the number of channels kept before them."""
    axis = call.axis()
    size = call.old(call.source())[axis]
    if call.new(call.source())[axis] == size:
        return
    kept = call.kept(call.source(), axis)
    if int(call.get("step", 1)) != 1:
        _stepped(call, axis, kept)
        return
    for name in ("start", "end"):
        written = call.get(name)
        if isinstance(written, int) and written < size:
            call.set(name, int(kept[: written if written >= 0 else max(size + written, 0)].sum()))


def _stepped(call: Resizing, axis: int, kept: Bools) -> None:
    """A slice that takes steps: the kept positions of it, as a slice where they still are one, else one by one."""
    step = int(call.get("step"))
    wanted = np.arange(kept.size)[slice(call.get("start"), call.get("end"), step)]
    places = (np.cumsum(kept) - 1)[wanted[kept[wanted]]]
    if (np.diff(places) == step).all():
        call.set("start", int(places[0]))
        call.set("end", int(places[-1]) + 1)
        return
    call.node.target = torch.ops.aten.index_select.default
    call.node.args = (call.source(), axis, call.table(torch.from_numpy(places.copy())))
    call.node.kwargs = {}
    call.changed = True


def narrowed(call: Resizing) -> None:
    """narrow: start and length follow the kept channels."""
    axis, start = call.axis(), int(call.get("start"))
    kept = call.kept(call.source(), axis)
    if not kept.all():
        call.set("start", int(kept[:start].sum()))
        call.set("length", call.new(call.node)[axis])


def picked(call: Resizing) -> None:
    """select: the index becomes the number of channels kept before it."""
    axis, index = call.axis(), call.get("index")
    kept = call.kept(call.source(), axis)
    if isinstance(index, int) and not kept.all():
        call.set("index", int(kept[: index % kept.size].sum()))


def parts(call: Resizing) -> None:
    """split, chunk, tensor_split: parts get explicit, possibly uneven sizes."""
    _split(call, call.axis())


def hsplit(call: Resizing) -> None:
    """hsplit: as split along axis 1, or 0 of a vector."""
    _split(call, min(1, len(call.old(call.source())) - 1))


def vsplit(call: Resizing) -> None:
    """vsplit: as split along axis 0."""
    _split(call, 0)


def dsplit(call: Resizing) -> None:
    """dsplit: as split along axis 2."""
    _split(call, 2)


def _split(call: Resizing, axis: int) -> None:
    if call.new(call.source())[axis] == call.old(call.source())[axis]:
        return
    sizes = [shape[axis] for shape in call.parts]
    call.node.target = torch.ops.aten.split_with_sizes.default
    call.node.args = (call.source(), sizes, axis)
    call.node.kwargs = {}
    call.changed = True


def padded(call: Resizing) -> None:
    """pad: padded channels are counted like any others."""
    source, written = call.source(), list(call.get("pad"))
    ndim = len(call.old(source))
    result = list(written)
    for axis, (before, after) in enumerate(padding(written, ndim)):
        if call.new(call.node)[axis] == call.old(call.node)[axis] or (before, after) == (0, 0):
            continue
        kept = call.kept(call.node, axis)
        place = 2 * (ndim - 1 - axis)
        result[place] = int(kept[:before].sum())
        result[place + 1] = int(kept[kept.size - after :].sum())
    if result != written:
        call.set("pad", result)


def indexed(call: Resizing) -> None:
    """index_select, index by one vector: positions are counted among the kept ones."""
    followed = followed_axis(call.node)
    if followed is None:
        return
    axis, index = followed[0] % len(call.old(call.source())), followed[1]
    if call.old(call.source())[axis] == call.new(call.source())[axis]:
        return
    kept = torch.from_numpy(call.kept(call.source(), axis).copy())
    rank = torch.cumsum(kept, 0) - 1

    def among_kept(old: Tensor) -> Tensor:
        wanted = old % kept.numel()
        return rank[wanted[kept[wanted]]]

    call.node.replace_input_with(index, call.renumber(index, among_kept))
    call.changed = True


def conv_groups(call: Resizing) -> None:
    """Convolution: groups are input channels over channels per group (depthwise ones lose whole groups)."""
    old = concrete(call.get("groups", 1))
    if old == 1:
        return
    groups = call.new(call.get("input"))[1] // call.new(call.get("weight"))[1]
    left = {int(call.kept(of, 1).reshape(old, -1).any(1).sum()) for of in (call.get("input"), call.node)}
    if left != {groups}:
        raise InvariantError(
            f"convolution '{call.node.name}' would keep {groups} groups of inputs, of its outputs those of {left}; "
            "a bug of curlfx, please report it with the network"
        )
    if groups != old:
        call.set("groups", call.scaled(call.get("groups"), old, groups))


def transposed_groups(call: Resizing) -> None:
    """Transposed convolution: groups are output channels over channels per group."""
    old = concrete(call.get("groups", 1))
    groups = call.new(call.node)[1] // call.new(call.get("weight"))[1]
    if old not in (1, groups):
        call.set("groups", call.scaled(call.get("groups"), old, groups))


def norm_shape(call: Resizing) -> None:
    """layer_norm, rms_norm: the normalised shape is the input's trailing one."""
    written = list(call.get("normalized_shape"))
    new = list(call.new(call.get("input")))[-len(written) :]
    if new != written:
        call.set("normalized_shape", new)


def norm_groups(call: Resizing) -> None:
    """group_norm: the groups that keep any of their channels."""
    groups = call.get("num_groups")
    left = int(call.kept(call.source(), 1).reshape(groups, -1).any(1).sum())
    if left != groups:
        call.set("num_groups", left)


def attention_scale(call: Resizing) -> None:
    """scaled_dot_product_attention: the scale of the intact head dimension is kept."""
    query = call.get("query")
    old, new = call.old(query)[-1], call.new(query)[-1]
    if old != new and call.get("scale") is None:
        call.set("scale", 1 / math.sqrt(old))


RESIZE: Mapping[str, Callable[[Resizing], None]] = {
    "view": output_sizes,
    "_unsafe_view": output_sizes,
    "reshape": output_sizes,
    "expand": output_sizes,
    "broadcast_to": output_sizes,
    "new_zeros": output_sizes,
    "new_ones": output_sizes,
    "new_full": output_sizes,
    "new_empty": output_sizes,
    "zeros": output_sizes,
    "ones": output_sizes,
    "full": output_sizes,
    "empty": output_sizes,
    "unflatten": unflattened,
    "squeeze": squeezed,
    "squeeze_": squeezed,
    "slice": bounds,
    "narrow": narrowed,
    "narrow_copy": narrowed,
    "select": picked,
    "split": parts,
    "split_with_sizes": parts,
    "chunk": parts,
    "unsafe_split": parts,
    "unsafe_split_with_sizes": parts,
    "unsafe_chunk": parts,
    "tensor_split": parts,
    "hsplit": hsplit,
    "vsplit": vsplit,
    "dsplit": dsplit,
    "pad": padded,
    "constant_pad_nd": padded,
    "index": indexed,
    "index_select": indexed,
    "conv1d": conv_groups,
    "conv2d": conv_groups,
    "conv3d": conv_groups,
    "conv_transpose1d": transposed_groups,
    "conv_transpose2d": transposed_groups,
    "conv_transpose3d": transposed_groups,
    "layer_norm": norm_shape,
    "rms_norm": norm_shape,
    "group_norm": norm_groups,
    "scaled_dot_product_attention": attention_scale,
}
"""ATen op name to the rewrite of its literal arguments; ops that are not here have none that depend on channels."""


def resize_for(target: Any) -> Callable[[Resizing], None] | None:
    """The rewrite of an op's literals, or None where nothing has to follow."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    return RESIZE.get(target._schema.name.partition("::")[2])
