"""Layers that multiply by a weight of their own: which weights they have, and how these are laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import Parameter

from curlfx.graph.modes import argument_of
from curlfx.graph.traced import TracedModel
from curlfx.ops.call import named_arguments

Kind = Literal["convolution", "transposed", "linear", "product"]


class Operands(NamedTuple):
    """Where a layer takes what, as positions in the op's schema."""

    kind: Kind
    input: int
    weight: int


_ATEN = torch.ops.aten
LAYERS: Mapping[object, Operands] = {
    _ATEN.conv1d.default: Operands("convolution", 0, 1),
    _ATEN.conv1d.padding: Operands("convolution", 0, 1),
    _ATEN.conv2d.default: Operands("convolution", 0, 1),
    _ATEN.conv2d.padding: Operands("convolution", 0, 1),
    _ATEN.conv3d.default: Operands("convolution", 0, 1),
    _ATEN.conv3d.padding: Operands("convolution", 0, 1),
    _ATEN.conv_transpose1d.default: Operands("transposed", 0, 1),
    _ATEN.conv_transpose2d.input: Operands("transposed", 0, 1),
    _ATEN.conv_transpose3d.input: Operands("transposed", 0, 1),
    _ATEN.linear.default: Operands("linear", 0, 1),
    _ATEN.mm.default: Operands("product", 0, 1),
    _ATEN.matmul.default: Operands("product", 0, 1),
    _ATEN.addmm.default: Operands("product", 1, 2),
}
"""Ops that are linear in a weight of their own, and take it from a fixed place."""


@dataclass(frozen=True)
class Layout:
    """What the axes of a weight mean.

    Attributes:
        kind: ``convolution`` ``(G·o, i, *kernel)``, ``transposed`` ``(G·i, o, *kernel)``, ``linear`` ``(o, i)`` or
            ``product`` ``(i, o)``.
        groups: G.
    """

    kind: Kind
    groups: int = 1

    @property
    def pointwise(self) -> Layout:
        """Layout of a 1 × 1 layer before or after one of this layout."""
        return Layout("convolution", self.groups) if self.kind == "transposed" else self

    def blocks(self, weight: Tensor) -> Tensor:
        """One matrix per group and kernel position: ``(G, K, o, i)``, a view where that is possible."""
        if self.kind == "linear":
            return weight[None, None]
        if self.kind == "product":
            return weight.t()[None, None]
        cut = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return cut.permute(0, 3, 1, 2) if self.kind == "convolution" else cut.permute(0, 3, 2, 1)

    def weight(self, blocks: Tensor, kernel: Sequence[int]) -> Tensor:
        """The inverse of `blocks`: a weight of this layout with the kernel's size."""
        if self.kind == "linear":
            return blocks[0, 0]
        if self.kind == "product":
            return blocks[0, 0].t()
        cut = blocks.permute(0, 2, 3, 1) if self.kind == "convolution" else blocks.permute(0, 3, 2, 1)
        return cut.reshape(cut.shape[0] * cut.shape[1], cut.shape[2], *kernel)

    def kernel(self, weight: Tensor) -> tuple[int, ...]:
        """Size of the kernel; () where there is none."""
        return tuple(weight.shape[2:])


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A parameter that layers multiply by.

    Attributes:
        names: All names of the tensor.
        nodes: Its ``get_attr`` nodes.
        calls: The layers, in the order of the graph.
        layout: Of the first of them.
        fault: Why it cannot be replaced by a product; "" where it can.
    """

    names: tuple[str, ...]
    nodes: tuple[Node, ...]
    calls: tuple[Node, ...]
    layout: Layout
    fault: str = ""


def is_layer(node: Node) -> bool:
    """Whether a node multiplies its input by a tensor of the network."""
    return node.op == "call_function" and node.target in LAYERS and weight_of(node).op == "get_attr"


def weight_of(call: Node) -> Node:
    """The weight of a node whose op is in `LAYERS`."""
    weight = argument_of(call, LAYERS[call.target].weight)
    assert isinstance(weight, Node)  # noqa: S101 - the schema says a tensor
    return weight


def layout_of(call: Node) -> Layout:
    """Layout of the weight of a node whose op is in `LAYERS`."""
    return Layout(LAYERS[call.target].kind, int(named_arguments(call).get("groups", 1)))


def layer_weights(traced: TracedModel) -> Iterator[LayerWeight]:
    """Every tensor that some layer multiplies by, once, in the order of the graph."""
    names: dict[int, list[str]] = {}
    for name, parameter in traced.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    nodes: dict[int, list[Node]] = {}
    for node in traced.graph.find_nodes(op="get_attr"):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            nodes.setdefault(id(traced.parameter(str(node.target))), []).append(node)
    place = {node: at for at, node in enumerate(traced.graph.nodes)}
    for tensor, held in nodes.items():
        users = sorted({user for node in held for user in node.users}, key=place.__getitem__)
        calls = tuple(user for user in users if is_layer(user) and weight_of(user) in held)
        if calls:
            value = traced.parameter(str(held[0].target))
            found = tuple(names.get(tensor, [str(held[0].target)]))
            fault = _fault(value, held, users, calls)
            yield LayerWeight(found, tuple(held), calls, layout_of(calls[0]), fault)


def _fault(value: Tensor, held: list[Node], users: list[Node], calls: tuple[Node, ...]) -> str:
    """Why a weight cannot be replaced by a product; "" where it can."""
    if not isinstance(value, Parameter) or not value.requires_grad:
        return "it is not trained"
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"its type is {value.dtype}"
    if value.numel() == 0 or (LAYERS[calls[0].target].kind == "product" and value.dim() != 2):
        return f"its shape is {tuple(value.shape)}"
    for user in users:
        if user not in calls or sum(operand in held for operand in _operands(user)) > 1:
            return f"node '{user.name}' reads it too, and not as a weight"
    layouts = {layout_of(call) for call in calls}
    if len(layouts) > 1:
        return f"nodes '{calls[0].name}' … read it in {len(layouts)} ways"
    return ""


def _operands(node: Node) -> Iterator[Node]:
    """The tensors a node reads, each as often as it reads it."""
    for argument in (*node.args, *node.kwargs.values()):
        if isinstance(argument, Node):
            yield argument


def last_layers(graph: Graph) -> set[Node]:
    """The layers that no other layer follows on some way to the output: the classifier, or the heads."""
    found: set[Node] = set()
    seen: set[Node] = set()
    open_nodes = list(graph.output_node().all_input_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_layer(node):
            found.add(node)
        else:
            open_nodes += node.all_input_nodes
    return found
