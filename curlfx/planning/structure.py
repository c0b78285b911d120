"""What a network computes, as text: one line per op, without weights, node names, devices, or the size of the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils import _pytree as pytree

from curlfx.errors import InvariantError
from curlfx.graph.shapes import propagate
from curlfx.graph.source import where
from curlfx.graph.traced import TracedModel

SILENT = frozenset(
    {"device", "layout", "pin_memory", "memory_format", "non_blocking", "cudnn_enabled", "generator", "implicit"}
)
"""Arguments that say where and how something is computed, not what."""
IDLE = frozenset({"aten.alias", "aten.slice.Tensor", "aten.contiguous"})
"""Ops that may return their operand as it is; where they do, they are left out, as export does with a fixed batch."""
RESHAPES = frozenset({"aten.view", "aten.reshape", "aten._unsafe_view", "aten.expand"})
"""Ops whose further arguments the shape of their result says."""
LONGEST = 160
BATCH = "N"


@dataclass(frozen=True)
class Op:
    """One op of a network.

    Attributes:
        text: Like ``aten.conv2d(%3, conv1.weight, None, [2, 2]) : [N, 64, 112, 112]``; ``%3`` is the result of op 3.
        module: Dotted name of the module that called it; "" where none is known.
        line: The user's line that called it, like ``resnet.py:92``; "" where none is known.
    """

    text: str
    module: str = ""
    line: str = ""


@dataclass(frozen=True)
class Structure:
    """Everything but the parameters that decides whether a plan fits a network.

    Attributes:
        batch: The batch size that all sizes are for; None where the network takes any, and ``N`` stands for it.
        inputs: Shape of every input.
        ops: In the order in which they run in eval mode.
    """

    batch: int | None
    inputs: tuple[str, ...]
    ops: tuple[Op, ...]


def structure(traced: TracedModel) -> Structure:
    """Read the structure off the graph of a network; the network stays as it is.

    Floating-point types are all alike, so casting a network changes nothing; integer constants (index tables) are part
    of it, by a hash of their values.
    """
    graph = traced.clone()
    graph.module.eval()
    propagate(graph)
    batch = _batch(graph.example_inputs)
    larger = _propagated(graph, batch) if graph.dynamic_batch and batch is not None else None
    return _Reader(graph, batch, larger).read()


def class_of(traced: TracedModel) -> str | None:
    """Class of the module that was traced, like ``torchvision.models.resnet.ResNet``; None where none is on record."""
    for node in traced.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack:
            return str(stack[0][1])
    return None


def _batch(inputs: tuple[Any, ...]) -> int | None:
    return next((x.shape[0] for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim), None)


def _propagated(graph: TracedModel, batch: int) -> TracedModel | None:
    """The same network with the shapes of one image more; None where it does not take that."""
    inputs = pytree.tree_map_only(
        Tensor,
        lambda x: x.new_empty((batch + 1, *x.shape[1:]), device="meta") if x.ndim and len(x) == batch else x,
        graph.example_inputs,
    )
    larger = TracedModel(graph.clone().module, inputs, graph.notes, graph.dynamic_batch)
    try:
        propagate(larger)
    except InvariantError:
        return None
    return larger


class _Reader:
    """Writes the lines; knows the sizes at two batch sizes, or at one where the batch is fixed."""

    def __init__(self, graph: TracedModel, batch: int | None, larger: TracedModel | None) -> None:
        self.graph, self.batch, self.free = graph, batch or 0, larger is not None
        others = larger.graph.nodes if larger is not None else graph.graph.nodes
        self.values: Mapping[Node, tuple[Any, Any]] = {
            node: (node.meta["val"], other.meta["val"]) for node, other in zip(graph.graph.nodes, others, strict=True)
        }
        self.saved = frozenset(graph.module.state_dict())
        self.names: dict[Node, str] = {}
        self.fed: set[Node] = set()

    def read(self) -> Structure:
        inputs: list[str] = []
        ops: list[Op] = []
        for node in self.graph.graph.nodes:
            if node.op == "placeholder" or any(operand in self.fed for operand in node.all_input_nodes):
                self.fed.add(node)
            if node.op == "placeholder":
                self.names[node] = f"input{len(inputs)}"
                inputs.append(self.kind(node))
            elif node.op == "get_attr":
                self.names[node] = self.constant(node)
            elif node.op == "output":
                ops.append(Op(f"return {self.argument(node.args[0])}"))
            elif self.idle(node):
                self.names[node] = self.argument(node.args[0])
            elif isinstance(node.meta["val"], (bool, int, float)):
                self.names[node] = self.size(*self.values[node])
            else:
                self.names[node] = f"%{len(ops)}"
                ops.append(Op(f"{self.call(node)} : {self.kind(node)}", _module(node), where(node)))
        return Structure(None if self.free else self.batch, tuple(inputs), tuple(ops))

    def idle(self, node: Node) -> bool:
        operand = node.args[0] if node.args else None
        if _operation(node.target) not in IDLE or not isinstance(operand, Node):
            return False
        before, after = operand.meta["val"], node.meta["val"]
        return isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape

    def kind(self, node: Node) -> str:
        return self.shape(*self.values[node], follows_batch=node in self.fed)

    def shape(self, value: Any, other: Any, *, follows_batch: bool) -> str:
        if isinstance(value, Tensor):
            axes = [self.size(*pair) for pair in zip(value.shape, other.shape, strict=True)]
            if not self.free and follows_batch and value.ndim and value.shape[0] == self.batch:
                axes[0] = BATCH
            kind = "" if value.is_floating_point() else _dtype(value.dtype)
            return f"{kind}[{', '.join(axes)}]"
        if isinstance(value, (tuple, list)):
            pairs = zip(value, other, strict=True)
            return f"({', '.join(self.shape(*pair, follows_batch=follows_batch) for pair in pairs)})"
        return self.size(value, other)

    def size(self, value: Any, other: Any) -> str:
        """A number, as it follows from the batch size where that is free."""
        if value == other or type(value) is not int:
            return repr(value)
        slope = other - value
        rest = value - slope * self.batch
        return f"{slope if slope != 1 else ''}{BATCH}{f'{rest:+d}' if rest else ''}"

    def constant(self, node: Node) -> str:
        value = node.meta["val"]
        name = str(node.target) if str(node.target) in self.saved else "constant"
        if not isinstance(value, Tensor):
            return repr(value)
        if value.is_floating_point() or value.is_complex():
            return name if name != "constant" else f"constant{list(value.shape)}"
        return f"{name}#{_digest(self.graph.parameter(str(node.target)))}"

    def call(self, node: Node) -> str:
        name = _operation(node.target)
        schema = node.target._schema.arguments if isinstance(node.target, OpOverload) else []
        arguments = [
            self.argument(value)
            for position, value in enumerate(node.args)
            if not (position < len(schema) and schema[position].name in SILENT) and not (name in RESHAPES and position)
        ]
        arguments += [
            f"{key}={self.argument(value)}"
            for key, value in sorted(node.kwargs.items())
            if key not in SILENT and name not in RESHAPES
        ]
        text = ", ".join(arguments)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]}… #{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return f"{name}({text})"

    def argument(self, value: Any) -> str:
        match value:
            case Node():
                return self.names[value]
            case tuple() | list():
                return f"[{', '.join(map(self.argument, value))}]"
            case dict():
                return "{" + ", ".join(f"{key!r}: {self.argument(item)}" for key, item in value.items()) + "}"
            case slice():
                return ":".join(map(self.argument, (value.start, value.stop, value.step)))
            case torch.dtype():
                return "float" if value.is_floating_point else _dtype(value)
            case torch.device():
                return "device"
            case _:
                return repr(value)


def _operation(target: Any) -> str:
    if isinstance(target, OpOverload):
        return str(target).removesuffix(".default")
    return str(getattr(target, "__name__", target))


def _module(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).split("@")[0] if stack else ""


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(tensor: Tensor) -> str:
    """Hash of the values of an integer tensor; of a tensor without values (on ``meta``) the word for it."""
    if tensor.is_meta:
        return "meta"
    content = tensor.detach().to("cpu", torch.int64).contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:12]
