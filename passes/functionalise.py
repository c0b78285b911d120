"""Replace operators that write into their input by those that return a new tensor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from curlfx.errors import InvariantError
from curlfx.graph import TracedModel
from curlfx.passes.base import Pass

_ATEN = torch.ops.aten
_NEW = frozenset(
    {
        _ATEN.batch_norm.default,
        _ATEN.bmm.default,
        _ATEN.cat.default,
        _ATEN.conv1d.default,
        _ATEN.conv2d.default,
        _ATEN.conv2d.padding,
        _ATEN.conv3d.default,
        _ATEN.conv_transpose2d.input,
        _ATEN.group_norm.default,
        _ATEN.layer_norm.default,
        _ATEN.linear.default,
        _ATEN.matmul.default,
        _ATEN.max_pool2d.default,
    }
)


@dataclass(frozen=True)
class Functionalise(Pass):
    """Turn ``relu_`` and its like into ``relu`` where nothing else can see the tensor they write into.

    Compilers like it: the ONNX exporter spends most of its time taking in-place activations apart. What may be aliased
    by another tensor in use stays as it is.
    """

    name: ClassVar[str] = "functionalise"

    def rewrite(self, traced: TracedModel) -> bool:
        """Replace every in-place operator that can be replaced, in graph order."""
        changed = False
        for node in traced.graph.nodes:
            twin = _twin(node)
            written = node.args[0] if node.args else None
            if twin is not None and isinstance(written, Node) and _is_private(node, written):
                node.target = twin
                for reader in [reader for reader in written.users if reader > node]:
                    reader.replace_input_with(written, node)
                changed = True
        return changed

    def ensures(self, before: TracedModel, after: TracedModel) -> None:
        """Check that no node came or went.

        Raises: InvariantError.
        """
        if len(before.graph.nodes) != len(after.graph.nodes):
            raise InvariantError(f"{len(before.graph.nodes)} nodes became {len(after.graph.nodes)}")


def _twin(node: Node) -> OpOverload | None:
    """The operator that computes what an in-place elementwise one does, or None.

    Operands of several types are left alone: in place the result keeps the type of the tensor written into.
    """
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    name = node.target._schema.name.removeprefix("aten::")
    packet = getattr(_ATEN, name[:-1], None) if name.endswith("_") else None
    twin = None if packet is None else getattr(packet, node.target._overloadname, None)
    types = {value.dtype for operand in node.all_input_nodes if isinstance(value := operand.meta.get("val"), Tensor)}
    return twin if isinstance(twin, OpOverload) and _is_elementwise(twin) and len(types) == 1 else None


def _is_private(node: Node, written: Node) -> bool:
    """Whether ``written`` is a tensor of its own, and no other name for it is made before ``node``."""
    return is_new(written) and all(is_new(reader) for reader in written.users if reader < node)


def is_new(node: Node) -> bool:
    """Whether a node is known to return memory that no other node has."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    if any(returned.alias_info is not None for returned in node.target._schema.returns):  # what it writes into, a view
        return False
    return node.target in _NEW or _is_elementwise(node.target)


def _is_elementwise(op: OpOverload) -> bool:
    return torch.Tag.pointwise in op.tags or op is _ATEN.hardswish.default
