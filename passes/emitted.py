"""What removed channels would still emit: constants, followed from the layers that make them to their readers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from curlfx.coupling import Coupling
from curlfx.graph.constants import Constants, mutates
from curlfx.graph.modes import mode_of
from curlfx.graph.traced import TracedModel
from curlfx.labels.compact import Bools
from curlfx.ops import joining, movement, pointwise, spatial
from curlfx.ops.call import is_getitem, named_arguments
from curlfx.ops.table import rule_for

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
LAYERS = CONVOLUTIONS | TRANSPOSED | {"linear"}
_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"})
_SUMS = frozenset({"sum", "mean", "amax", "amin"})
_FAMILIES = frozenset(family.__name__ for family in (movement, joining, pointwise, spatial))
"""Ops that may be run on values of which some are NaN: what they make of the others does not depend on these.

All but sampling at computed places (``grid_sampler``), which takes NaN for a place outside of the image.
"""


@dataclass(frozen=True)
class Read:
    """What one reader loses when channels of one of its inputs go.

    Attributes:
        reader: Name of the node that sums over the channels.
        source: Name of its input.
        constant: Channels whose constant is known and not 0.
        varying: Channels of which nothing constant is known.
        made: What the reader makes of the constants, in float64 and the shape of its output, without its bias; None
            where it is no layer with a weight.
    """

    reader: str
    source: str
    constant: int
    varying: int
    made: Tensor | None


def reads(traced: TracedModel, coupling: Coupling, alive: Bools) -> Iterator[Read]:
    """What every reader of removed channels loses, in the order of the graph; computed in float64.

    A layer that makes a removed channel emits its bias, and what it makes of the constants of other removed channels; a
    normalisation emits its shift. That is exact where the weights or the scale of the channel are 0, and the mean over
    the data as far as running statistics tell it. Values that are exact come first. The constants then go through
    element-wise ops, pooling, data movement and sums, by running these very ops; NaN stands for what depends on the
    images.

    Shapes: alive ``(N + 1,)`` as `Coupling.alive` makes it.
    """
    double = copy.deepcopy(traced).to(torch.float64)
    exact = _Follower(double, coupling, alive, None)
    for _ in exact.run():
        pass
    yield from _Follower(double, coupling, alive, exact.made).run()


class _Follower:
    """One run through the graph; ``made`` collects what layers and normalisations emit.

    Args:
        settled: What they emit whatever the images; None: find just that.
    """

    def __init__(
        self, traced: TracedModel, coupling: Coupling, alive: Bools, settled: Mapping[Node, Tensor] | None
    ) -> None:
        self.traced, self.coupling, self.settled = traced, coupling, settled
        self.alive = coupling.cells.alive(alive)
        self.constants = Constants(traced)
        self.device = next((tensor.device for tensor in traced.tensors().values()), torch.device("cpu"))
        self.values: dict[Node, Any] = {}
        self.made: dict[Node, Tensor] = {}
        self.sources: dict[str, list[str]] = {}
        for reader, source in coupling.reads:
            self.sources.setdefault(reader, []).append(source)

    @torch.no_grad()
    def run(self) -> Iterator[Read]:
        """Follow the graph; values are forgotten after their last reader."""
        last = {source: node for node in self.traced.graph.nodes for source in node.all_input_nodes}
        ending: dict[Node, list[Node]] = {}
        for source, node in last.items():
            ending.setdefault(node, []).append(source)
        for node in self.traced.graph.nodes:
            lost = [] if self.settled is None else list(self._lost(node))
            yield from lost
            self.values[node] = self._value(node, lost)
            for source in ending.get(node, ()):
                del self.values[source]

    def _lost(self, node: Node) -> Iterator[Read]:
        """What the node loses of each of its inputs, where something goes that was not 0."""
        for source in node.all_input_nodes:
            read = self._read(source, node) if source.name in self.sources.get(node.name, ()) else None
            if read is not None:
                yield read

    def _value(self, node: Node, lost: list[Read]) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (bool, int, float)):
            return value
        if node.op == "get_attr":
            tensor = self.traced.parameter(str(node.target)).detach()
            return tensor.clone() if any(mutates(user) for user in node.users) else tensor
        if node.op != "call_function":
            return self._unknown(value)
        if is_getitem(node) or (node in self.constants and not _draws(node)):
            return self._called(node)
        name = _name(node)
        if name in LAYERS or name in _NORMS:
            emitted = self._layer(node, lost) if name in LAYERS else self._norm(node, name)
            if self.settled is None and not bool(emitted.isnan().all()):
                self.made[node] = emitted.clone()  # an activation may work in place
            return emitted
        return self._followed(node, name)

    def _called(self, node: Node, changed: Mapping[str, Tensor | None] = MappingProxyType({})) -> Any:
        """What the op computes of the values of its operands, some of them replaced by name."""
        if changed:
            named = {key: map_arg(value, self.values.__getitem__) for key, value in named_arguments(node).items()}
            return node.target(**{**named, **changed})  # type: ignore[operator]
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _followed(self, node: Node, name: str) -> Any:
        """The op on values of which some are NaN; nothing is known of the result of other ops."""
        rule = rule_for(node.target, self.coupling.rules)
        operands = [self.values[source] for source in node.all_input_nodes]
        known = rule is not None and (rule.__module__ in _FAMILIES or name in _SUMS) and name != "grid_sampler"
        if not known or _draws(node) or any(operand is None for operand in operands):
            if mutates(node) and isinstance(operands[0], Tensor):
                operands[0].fill_(torch.nan)
            return self._unknown(node.meta["val"])
        if rule is not pointwise.pointwise:
            return pytree.tree_map_only(Tensor, _floating, self._called(node))
        varying = [x.isnan() for x in operands if isinstance(x, Tensor) and x.is_floating_point()]
        made = self._called(node)
        if not made.is_floating_point():
            return None
        for unknown in varying:
            made.masked_fill_(unknown, torch.nan)
        return made

    def _read(self, source: Node, node: Node) -> Read | None:
        """What the node loses of one input; None where nothing goes that was not 0."""
        found, gone = self.values[source], self._gone(source)
        if not isinstance(found, Tensor) or not found.is_floating_point() or not bool(gone.any()):
            return None
        gone = gone.broadcast_to(found.shape)
        known = gone & found.isfinite()
        constant = torch.where(known, found, 0.0)
        counts = self._channels(source, constant != 0), self._channels(source, gone & ~known)
        if not any(counts):
            return None
        layer = _name(node) in LAYERS and self._weight(node) is not None and named_arguments(node)["input"] is source
        made = self._called(node, {"input": constant, "bias": None}) if layer else None
        return Read(node.name, source.name, *counts, made)

    def _channels(self, source: Node, elements: Tensor) -> int:
        """How many removed channels are among some elements of a tensor."""
        marked = elements.cpu().numpy()
        numbers = [
            np.broadcast_to(array, marked.shape)[marked]
            for array in self.coupling.channels_in(self.coupling.labels(source.name))
        ]
        return int(np.unique(np.concatenate([*numbers, np.zeros(0, np.int64)])).size)

    def _gone(self, node: Node) -> Tensor:
        """Which elements of a tensor go, broadcastable to it."""
        gone = np.zeros([1] * node.meta["val"].ndim, bool)
        for array in self.coupling.labels(node.name):
            gone = gone | ~self.alive[array]
        return torch.from_numpy(gone).to(self.device)

    def _weight(self, node: Node) -> Tensor | None:
        """The weight of a layer where no image reaches it."""
        weight = named_arguments(node)["weight"]
        return self.values[weight] if weight in self.constants else None

    def _layer(self, node: Node, lost: list[Read]) -> Tensor:
        """What a convolution or linear layer emits: its bias, where the weights are 0 or the channel goes."""
        named, weight = named_arguments(node), self._weight(node)
        result: Tensor = self._unknown(node.meta["val"])
        if weight is None or (_name(node) != "linear" and result.ndim != weight.ndim):
            return result
        axis = -1 if _name(node) == "linear" else 1
        bias = self._vector(named["bias"], weight)
        if named.get("groups", 1) > 1:
            result = self._called(node)
        shift = _along(weight.new_zeros(1) if bias is None else bias, result, axis)
        if self.settled is None:
            silent = _along(_fan_in(node, weight) == 0, result, axis)
            return torch.where(silent & result.isnan(), shift, result)
        settled = self.settled.get(node, result.new_full((), torch.nan))
        made = sum((read.made for read in lost if read.made is not None), shift)
        guess = torch.where(result.isnan(), made, result)
        return torch.where(settled.isnan() & self._gone(node), guess, settled.broadcast_to(guess.shape))

    def _norm(self, node: Node, name: str) -> Tensor:
        """What a normalisation emits: its shift, where the scale is 0 or the channel goes."""
        named = named_arguments(node)
        result: Tensor = self._unknown(node.meta["val"])
        axis = 1 if name in ("batch_norm", "instance_norm", "group_norm") else -1
        weight, bias = (self._vector(named.get(key), result) for key in ("weight", "bias"))
        shift = _along(result.new_zeros(1) if bias is None else bias, result, axis)
        if self.settled is not None:
            settled = self.settled.get(node, result)
            return torch.where(settled.isnan() & self._gone(node), shift, settled)
        if name == "batch_norm" and not mode_of(node):
            result = self._called(node)
        if weight is None:
            return result
        return torch.where(_along(weight == 0, result, axis), shift, result)

    def _unknown(self, value: Any) -> Any:
        """A stand-in for an output of which nothing is known: NaN, or None for what is no floating-point tensor."""
        if isinstance(value, (tuple, list)):
            return [self._unknown(part) for part in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        return torch.full(value.shape, torch.nan, dtype=torch.float64, device=self.device)

    def _vector(self, node: Any, like: Tensor) -> Tensor | None:
        """The value of an optional parameter; NaN where images reach it."""
        if not isinstance(node, Node):
            return None
        return self.values[node] if node in self.constants else like.new_full((1,), torch.nan)


def _name(node: Node) -> str:
    """Name of an ATen op without its overload, and of its twin where it works in place; "" for anything else."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    namespace, _, name = node.target._schema.name.partition("::")
    return name.removesuffix("_") if namespace == "aten" else ""


def _draws(node: Node) -> bool:
    """Whether an op draws random numbers in the mode that it is in."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and mode_of(node) is not False


def _floating(made: Tensor) -> Tensor | None:
    """A tensor that can hold NaN; what follows from others may depend on the images."""
    return made if made.is_floating_point() else None


def _along(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """A vector, or an affine parameter of the last axes, laid out to meet a tensor's axis."""
    return vector.reshape(-1, *[1] * (like.ndim - 2)) if axis == 1 else vector


def _fan_in(node: Node, weight: Tensor) -> Tensor:
    """Largest weight, without sign, of every output channel of a layer ``(K,)``."""
    if _name(node) in TRANSPOSED:
        groups = int(named_arguments(node)["groups"])
        weight = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return weight.abs().amax((1, 3)).reshape(-1)
    return weight.abs().flatten(1).amax(1)
