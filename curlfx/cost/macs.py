"""MACs and parameters of a traced network, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curlfx.cost.contraction import contractions, per_image
from curlfx.graph import TracedModel
from curlfx.ops.table import Rule


def macs(traced: TracedModel, rules: Mapping[Any, Rule] = MappingProxyType({})) -> dict[str, int]:
    """Multiply-adds of every node that contracts something: convolution, linear, matrix product, einsum, attention.

    Units: multiply-adds for one image, biases, normalisation and pointwise work not counted; what does not depend on
    the images is counted once.
    Args: ``rules`` of ops of one's own, as `curlfx.couple` takes them.
    Source: agrees with ``torch.utils.flop_counter`` (which counts two per multiply-add) at batch 1.
    """
    batch, scaled = batch_size(traced), per_image(traced.graph)
    found: dict[str, int] = {}
    for node in traced.graph.nodes:
        boxes = contractions(node, rules)
        if boxes:
            found[node.name] = sum(box.volume for box in boxes) // (batch if node in scaled else 1)
    return found


def params(traced: TracedModel) -> dict[str, int]:
    """Number of elements of every parameter that the graph reads; one that is read under two names counts once.

    A parameter that the graph never reads (an auxiliary head that only training uses) does not ship and is left out.
    """
    return {name: tensor.numel() for name, tensor in tensors_read(traced).items() if isinstance(tensor, nn.Parameter)}


def tensors_read(traced: TracedModel) -> dict[str, Tensor]:
    """Parameters, buffers and constants that the graph reads, by name, each once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for node in traced.graph.nodes:
        if node.op != "get_attr" or not node.users:
            continue
        try:
            tensor = traced.parameter(str(node.target))
        except KeyError:  # a constant that is no tensor
            continue
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[str(node.target)] = tensor
    return found


def batch_size(traced: TracedModel) -> int:
    """Images in the example batch: axis 0 of the first tensor among the inputs (1 when there is none)."""
    leaves = pytree.tree_leaves(traced.example_inputs)
    return next((int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)
