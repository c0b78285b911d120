"""Expand linear: three layers, or the product of three factors, in place of every compact layer."""

from __future__ import annotations

import difflib
import fnmatch
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import Argument

from curlfx.errors import UsageError
from curlfx.graph.modes import PROVENANCE, argument_of, set_argument
from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel
from curlfx.passes.agreement import insist
from curlfx.passes.base import Pass
from curlfx.passes.factors import INITIALISATIONS, Factors, Initialisation, compose, factor_names, factorise
from curlfx.passes.linear_layers import (
    LAYERS,
    LayerWeight,
    Layout,
    last_layers,
    layer_weights,
    layout_of,
    weight_of,
)

Compute = Literal["auto", "weights", "features"]
_ATEN = torch.ops.aten
_POINTWISE = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}
_BIAS = 2


@dataclass(frozen=True)
class Expanded:
    """What `ContractLinear` needs to know; stands in ``meta["expanded"]`` of M's node.

    Attributes:
        names: All names of the weight.
        layout: Of the weight.
    """

    names: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True)
class ExpandLinear(Pass):
    """Replace convolutions (1-D to 3-D, grouped, transposed) and linear layers by three in a row that compute the same.

    A 1 × 1 layer A to ``rate`` times the input channels, M with kernel, stride, padding and dilation of the old one to
    ``rate`` times the output channels, and a 1 × 1 layer B with the old bias; all with the old number of groups, and
    nothing else between them. A weight ``conv.weight`` gives way to the parameters ``conv.weight_A``,
    ``conv.weight_M`` and ``conv.weight_B``; one that several layers share, to three that they share. B takes the
    name of the old node. What nothing can be said for (weights that are computed, not trained, or read by other nodes
    too) stays.

    Attributes:
        rate: Channels within, per channel outside.
        layers: Names of weights, or of modules they are in, with ``*``; empty: all layers but the last, which is the
            classifier.
        init: How the factors start; see `curlfx.passes.factors.factorise`.
        compute: ``features`` runs three layers; ``weights`` multiplies the factors and runs one layer with the product:
            the same function with the same gradients, in a fraction of the time where a layer has more positions than
            channels; ``auto`` takes for each layer what needs fewer multiply-adds.
        batch_size: Images per step for which ``auto`` counts.
        seed: Of the random factors, together with the name of the weight.

    Source: Qian et al., arXiv:2204.11444; shapes as in ExpandNets, arXiv:1811.10495.
    """

    name: ClassVar[str] = "expand-linear"
    rate: int = 4
    layers: tuple[str, ...] = ()
    init: Initialisation = "semi_orthogonal"
    compute: Compute = "auto"
    batch_size: int = 64
    seed: int = 0

    def requires(self, traced: TracedModel) -> None:
        """Refuse options that mean nothing and names of layers that cannot be expanded.

        Raises: UsageError.
        """
        if fault := bare(self.layers):
            raise UsageError(f"{self.name}: {fault}")
        for name in ("rate", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{self.name}: {name} = {getattr(self, name)}: want 1 or more")
        for name, choices in (("init", INITIALISATIONS), ("compute", get_args(Compute))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{self.name}: {name} = {getattr(self, name)!r}: want one of {', '.join(choices)}")
        if any("expanded" in node.meta for node in traced.graph.nodes):
            raise UsageError(f"{self.name}: the network is expanded already; contract it first")
        taken = _taken(traced.module)
        for chosen in self.chosen(traced):
            for name in factor_names(chosen.names[0]):
                if name in taken:
                    raise UsageError(f"{self.name}: '{name}' is taken already, by a {taken[name]}")

    def rewrite(self, traced: TracedModel) -> bool:
        """Put the factors in. Returns whether there was a layer to expand."""
        chosen = self.chosen(traced)
        for weight in chosen:
            self._expand(traced, weight)
        return bool(chosen)

    def ensures(self, before: TracedModel, after: TracedModel) -> None:
        """Both compute the same on the example inputs. Raises: VerificationError."""
        insist(before, after, self.name)

    def chosen(self, traced: TracedModel) -> list[LayerWeight]:
        """The weights that are expanded. Raises: UsageError for a name of none, or of one that cannot be expanded."""
        weights = list(layer_weights(traced))
        if not self.layers:
            last = last_layers(traced.graph)
            return [weight for weight in weights if not weight.fault and not last.intersection(weight.calls)]
        places = {weight: list(_with_modules(weight.names)) for weight in weights}
        for pattern in self.layers:
            if not any(_matches(found, pattern) for found in places.values()):
                known = dict.fromkeys(place for found in places.values() for place in found)
                near = difflib.get_close_matches(pattern, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"{self.name}: {pattern!r} names no convolution or linear layer of the network{hint}")
        named = [weight for weight in weights if any(_matches(places[weight], pattern) for pattern in self.layers)]
        for weight in named:
            if weight.fault:
                raise UsageError(
                    f"{self.name}: {weight.names[0]!r} cannot be expanded: {weight.fault}; leave it out of layers"
                )
        return named

    def _expand(self, traced: TracedModel, weight: LayerWeight) -> None:
        name, layout = weight.names[0], weight.layout
        tensor = traced.parameter(name)
        factors = factorise(tensor, layout, self.rate, self.init, (self.seed, zlib.crc32(name.encode())))
        by_weights = self._by_weights(traced, weight, factors)
        for held in weight.names:
            path, _, key = held.rpartition(".")
            traced.module.get_submodule(path).register_parameter(key, None)  # which keeps its place in the state dict
        for new, factor in zip(factor_names(name), factors, strict=True):
            traced.add_parameter(new, factor)
        nodes = _factor_nodes(traced, weight, name)
        for other in weight.nodes[1:]:
            other.replace_all_uses_with(weight.nodes[0])
        if by_weights:
            _read_product(traced, weight, nodes)
        else:
            for call in weight.calls:
                _run_three(traced, call, nodes, layout, tensor.dim() - 2)

    def _by_weights(self, traced: TracedModel, weight: LayerWeight, factors: Factors[Tensor]) -> bool:
        """Whether to multiply the factors: under ``auto`` where that takes fewer multiply-adds than three layers."""
        if self.compute != "auto":
            return self.compute == "weights"
        (groups, kernel, q, p), layout = weight.layout.blocks(factors.m).shape, weight.layout
        old = traced.parameter(weight.names[0])
        o, i = layout.blocks(old).shape[2:]
        product = groups * kernel * min(q * i * (p + o), o * p * (q + i))
        one = three = 0.0
        for call in weight.calls:
            inner, outer = _positions(traced, call, self.batch_size)
            middle = inner if layout.kind == "transposed" else outer
            one += middle * old.numel()
            three += inner * factors.a.numel() + middle * factors.m.numel() + outer * factors.b.numel()
        return product + one < three


def bare(layers: Sequence[str]) -> str | None:
    """What is wrong with a single string in place of names, which would be read letter by letter; None for names."""
    return f"layers = {layers!r}: want a tuple of names, like ({layers!r},)" if isinstance(layers, str) else None


def _taken(module: nn.Module) -> dict[str, str]:
    """What stands at every dotted name of a network."""
    found = {
        "parameter": module.named_parameters(remove_duplicate=False),
        "buffer": module.named_buffers(remove_duplicate=False),
        "module": module.named_modules(remove_duplicate=False),
    }
    return {name: kind for kind, held in found.items() for name, _ in held}


def _positions(traced: TracedModel, call: Node, batch_size: int) -> tuple[float, float]:
    """Positions at which a layer reads and writes all channels, over a batch."""
    operands, layout = LAYERS[call.target], layout_of(call)
    weight = shape_of(weight_of(call))
    channels = {"convolution": (weight[1] * layout.groups, weight[0]), "linear": (weight[1], weight[0])}.get(
        layout.kind, (weight[0], weight[1] * layout.groups)
    )
    source = argument_of(call, operands.input)
    shapes = (shape_of(source) if isinstance(source, Node) else (), shape_of(call))
    first = next((node for node in traced.graph.find_nodes(op="placeholder")), None)
    scale = batch_size / shape_of(first)[0] if traced.dynamic_batch and first is not None else 1.0
    inner, outer = (scale * prod(shape) / count for shape, count in zip(shapes, channels, strict=True))
    return inner, outer


def _matches(places: Sequence[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern) for place in places)


def _with_modules(names: tuple[str, ...]) -> Iterator[str]:
    """Names of a parameter and of the modules it is in."""
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            yield ".".join(parts[:count])


def _factor_nodes(traced: TracedModel, weight: LayerWeight, name: str) -> tuple[Node, Node, Node]:
    """Nodes that read the factors; the one of the weight becomes that of M."""
    middle = weight.nodes[0]
    middle.meta["expanded"] = Expanded(weight.names, weight.layout)
    a, m, b = factor_names(name)
    middle.target = m
    with traced.graph.inserting_after(middle):
        last = traced.graph.create_node("get_attr", b)
        first = traced.graph.create_node("get_attr", a)
    return first, middle, last


def _read_product(traced: TracedModel, weight: LayerWeight, nodes: tuple[Node, Node, Node]) -> None:
    """Let the layers read the product of the factors."""
    old = weight.nodes[0]
    with traced.graph.inserting_before(weight.calls[0]):
        product = traced.graph.call_function(compose, (*nodes, weight.layout.kind, weight.layout.groups))
    for call in weight.calls:
        call.replace_input_with(old, product)


def _run_three(traced: TracedModel, call: Node, nodes: tuple[Node, Node, Node], layout: Layout, axes: int) -> None:
    """Put a layer for A and one for M before a layer, which becomes that of B."""
    graph, at = traced.graph, LAYERS[call.target].input
    source, spatial = argument_of(call, at), layout.kind in ("convolution", "transposed")
    with graph.inserting_before(call):
        if spatial:
            op, arguments = _pointwise(source, nodes[0], None, layout.groups, axes)
            a = graph.call_function(op, arguments)
            m = graph.call_function(call.target, *_without_bias(call, a, nodes[1]))  # type: ignore[arg-type]
        else:
            same = _ATEN.mm.default if call.target is _ATEN.addmm.default else call.target
            a = graph.call_function(same, (source, nodes[0]))  # type: ignore[arg-type]
            m = graph.call_function(same, (a, nodes[1]))  # type: ignore[arg-type]
    for new in (a, m):
        new.meta.update({key: call.meta[key] for key in PROVENANCE if key in call.meta})
    if spatial:
        call.target, call.args = _pointwise(m, nodes[2], argument_of(call, _BIAS), layout.groups, axes)
        call.kwargs = {}
    else:
        set_argument(call, at, m)
        set_argument(call, at + 1, nodes[2])


def _pointwise(
    source: Argument, weight: Node, bias: Argument, groups: int, axes: int
) -> tuple[OpOverload, tuple[Argument, ...]]:
    """Op and arguments of a convolution with a kernel of 1 along every one of ``axes``."""
    return _POINTWISE[axes], (source, weight, bias, [1] * axes, [0] * axes, [1] * axes, groups)


def _without_bias(call: Node, source: Node, weight: Node) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
    """Arguments of a convolution with another input and weight, and no bias."""
    args = [source, weight, *call.args[2:]]
    if len(args) > _BIAS:
        args[_BIAS] = None
    return tuple(args), {key: value for key, value in call.kwargs.items() if key != "bias"}
