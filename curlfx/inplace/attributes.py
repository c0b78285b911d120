"""The widths that the layers of `torch.nn` keep as attributes, read off their parameters and their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Widths = Mapping[str, Any]
Rule = Callable[[Any, Sequence[Node]], Widths]


def _convolution(module: Any, nodes: Sequence[Node]) -> Widths:
    groups = _argument(nodes, "groups") or module.groups
    outputs, inputs = (
        (module.weight.shape[1] * groups, module.weight.shape[0])
        if isinstance(module, _ConvTransposeNd)
        else (module.weight.shape[0], module.weight.shape[1] * groups)
    )
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def _linear(module: Any, _: Sequence[Node]) -> Widths:
    return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}


def _bilinear(module: Any, _: Sequence[Node]) -> Widths:
    outputs, first, second = module.weight.shape
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


def _batch_norm(module: Any, nodes: Sequence[Node]) -> Widths:
    return {"num_features": _length(module.weight, module.running_mean) or _channels(nodes)}


def _layer_norm(module: Any, nodes: Sequence[Node]) -> Widths:
    shape = _argument(nodes, "normalized_shape") if module.weight is None else module.weight.shape
    return {"normalized_shape": None if shape is None else tuple(shape)}


def _group_norm(module: Any, nodes: Sequence[Node]) -> Widths:
    return {"num_groups": _argument(nodes, "num_groups"), "num_channels": _length(module.weight) or _channels(nodes)}


def _embedding(module: Any, _: Sequence[Node]) -> Widths:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _prelu(module: Any, _: Sequence[Node]) -> Widths:
    return {"num_parameters": module.weight.numel()}


def _attention(module: Any, nodes: Sequence[Node]) -> Widths:
    """Heads are counted where the scores are made: in ``scaled_dot_product_attention``, or in a batched product."""
    joint = module.in_proj_weight
    width = (module.q_proj_weight if joint is None else joint).shape[1]
    head = _head_dim(nodes)
    return {
        "embed_dim": width,
        "kdim": width if joint is not None else module.k_proj_weight.shape[1],
        "vdim": width if joint is not None else module.v_proj_weight.shape[1],
        "head_dim": head,
        "num_heads": head and module.out_proj.weight.shape[1] // head,
    }


def _unflatten(module: Any, nodes: Sequence[Node]) -> Widths:
    sizes = _argument(nodes, "sizes")
    return {"unflattened_size": type(module.unflattened_size)(sizes) if _whole(sizes) else None}


RULES: Mapping[type[nn.Module], Rule] = MappingProxyType(
    {
        _ConvNd: _convolution,
        nn.Linear: _linear,
        nn.Bilinear: _bilinear,
        _NormBase: _batch_norm,
        nn.LayerNorm: _layer_norm,
        nn.RMSNorm: _layer_norm,
        nn.GroupNorm: _group_norm,
        nn.Embedding: _embedding,
        nn.EmbeddingBag: _embedding,
        nn.PReLU: _prelu,
        nn.MultiheadAttention: _attention,
        nn.Unflatten: _unflatten,
    }
)
"""Class to what its attributes must be, given its parameters and the calls it makes; sub-classes take their base's."""


def layer_widths(module: nn.Module, nodes: Sequence[Node]) -> dict[str, Any]:
    """What the attributes of a layer of `torch.nn` should say, of those that can be known; {} for other modules."""
    rule = next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)
    return {} if rule is None else {name: value for name, value in rule(module, nodes).items() if value is not None}


def named_arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by their names in its schema; {} for another call."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    names = [argument.name for argument in schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _argument(nodes: Iterable[Node], name: str) -> Any:
    """The one value an argument has in all calls that have it; None where they differ, or none has it."""
    found: list[Any] = []
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        defaults = {argument.name: argument.default_value for argument in schema.arguments} if schema else {}
        if name in defaults:
            value = named_arguments(node).get(name, defaults[name])
            found.append(list(value) if isinstance(value, Sequence) else value)
    return found[0] if found and all(value == found[0] for value in found) else None


def _whole(sizes: object) -> bool:
    return isinstance(sizes, list) and all(isinstance(size, int) for size in sizes)


def _length(*tensors: Tensor | None) -> int | None:
    return next((len(tensor) for tensor in tensors if tensor is not None), None)


def _channels(nodes: Iterable[Node]) -> int | None:
    """Size of the second axis of what the calls read, where they agree."""
    read = [node.args[0] for node in nodes if node.args]
    values = [node.meta.get("val") for node in read if isinstance(node, Node)]
    sizes = {value.shape[1] for value in values if isinstance(value, Tensor) and value.ndim > 1}
    return sizes.pop() if len(sizes) == 1 else None


def _head_dim(nodes: Iterable[Node]) -> int | None:
    aten = torch.ops.aten
    position = {aten.scaled_dot_product_attention.default: 0, aten.bmm.default: 0, aten.baddbmm.default: 1}
    for node in nodes:
        if node.target in position:
            query = node.args[position[node.target]]
            value = query.meta.get("val") if isinstance(query, Node) else None
            return int(value.shape[-1]) if isinstance(value, Tensor) else None
    return None
