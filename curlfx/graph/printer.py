"""The printed form of a graph: stable text, one node per line, with shapes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, Node

from curlfx.graph.traced import TracedModel

_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def show(traced: TracedModel | Graph) -> str:
    """Text of a graph, such as ``%add = aten.add.Tensor(%x, %y) : f32[2, 16, 32, 32]``, one line per node.

    Parameters, buffers and constants go by their state-dict names; types are shown once shapes have been propagated.
    """
    graph = traced.graph if isinstance(traced, TracedModel) else traced
    return "\n".join(_line(node) for node in graph.nodes)


def _line(node: Node) -> str:
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    kind = f" : {type_of(node.meta['val'])}" if "val" in node.meta else ""
    if node.op == "placeholder":
        return f"%{node.name} = input{kind}"
    if node.op == "get_attr":
        return f"%{node.target} = {_role(node)}{kind}"
    arguments = [_value(a) for a in node.args] + [f"{key}={_value(a)}" for key, a in node.kwargs.items()]
    return f"%{node.name} = {_operation(node)}({', '.join(arguments)}){kind}"


def _role(node: Node) -> str:
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return "parameter" if isinstance(value, nn.Parameter) else "buffer" if isinstance(value, Tensor) else "constant"


def _operation(node: Node) -> str:
    if isinstance(node.target, OpOverload):
        return str(node.target)
    if isinstance(node.target, str):
        return node.target
    module = getattr(node.target, "__module__", "").lstrip("_")
    name = getattr(node.target, "__name__", str(node.target))
    return f"{module}.{name}" if module == "operator" else name


def _value(value: Any) -> str:
    match value:
        case Node():
            return f"%{value.target}" if value.op == "get_attr" else f"%{value.name}"
        case tuple():
            return f"({', '.join(map(_value, value))}{',' * (len(value) == 1)})"
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{key!r}: {_value(v)}" for key, v in value.items()) + "}"
        case slice():
            return f"{_value(value.start)}:{_value(value.stop)}:{_value(value.step)}"
        case torch.dtype():
            return _DTYPES.get(value, str(value))
        case str():
            return repr(value)
        case _:
            return str(value)


def type_of(value: Any) -> str:
    """Type of a node's value, such as ``f32[2, 16, 32, 32]``; a number stands for itself."""
    match value:
        case Tensor():
            return f"{_DTYPES.get(value.dtype, str(value.dtype))}{list(value.shape)}"
        case tuple() | list():
            return f"({', '.join(map(type_of, value))})"
        case _:
            return str(value)
