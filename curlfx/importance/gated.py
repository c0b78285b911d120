"""The network that KL and Taylor scores look at: gated, in evaluation mode, cut behind every group's first gate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils import _pytree as pytree

from curlfx.cost.macs import batch_size, macs
from curlfx.coupling import Coupling, Group
from curlfx.errors import ModelError
from curlfx.graph import TracedModel
from curlfx.graph.modes import mode_of
from curlfx.importance.divergence import AUTO, DIVERGENCES, Divergence
from curlfx.importance.section import Section, Values, calls, needed, reachable
from curlfx.passes.fold_batch_norm import FoldBatchNorm
from curlfx.passes.functionalise import Functionalise
from curlfx.passes.gate import GATES, Gate
from curlfx.passes.pipeline import run

_ATEN = torch.ops.aten
_HEADS: Mapping[Any, str] = {
    _ATEN.sigmoid.default: "bernoulli",
    _ATEN.softmax.int: "softmax",
    _ATEN.log_softmax.int: "softmax",
}
"""Ops that turn logits into predictions, and the divergence that goes with them."""
_CLASSES = 1
_DROPOUTS = frozenset(
    getattr(_ATEN, f"{kind}dropout{place}").default
    for kind in ("", "alpha_", "feature_", "feature_alpha_")
    for place in ("", "_")
)


@dataclass(frozen=True, eq=False)
class Tail:
    """What has to run again when a channel of a group is closed.

    Attributes:
        group: The group.
        section: From its first gates to the logits; None where the logits do not depend on the group.
        work: Of one run, in multiply-adds and elements written for one image.
    """

    group: Group
    section: Section | None
    work: int


class GatedNetwork:
    """A copy of the network with a gate per channel, to be run as a whole or in part.

    Batch normalisations are folded, and in-place ops replaced, so that a value once computed stays what it is. What
    cannot be replaced makes the network *impure*: then every tail is the whole network.

    Args:
        traced: The dense network, left as it is.
        coupling: Its channels, at least one.
        divergence: A name in `DIVERGENCES`, or ``"auto"``: by the op that makes the output, else softmax.

    Attributes:
        divergence: How predictions are compared; they are taken before a final sigmoid or softmax.
        impure: Name of a node that writes into a tensor that another one may read; None: there is none.
        fixed_batch: The one batch size that the graph takes; None: any.
        device: Where it runs.
        dtype: Of its gates and images.
        total: Number of channels.

    Raises: ModelError when there is not one input, or no tensor among the outputs.
    """

    def __init__(self, traced: TracedModel, coupling: Coupling, divergence: str = AUTO) -> None:
        averaged = any(group.statistics_change for group in coupling.groups)
        gated, _ = run(traced, [Gate(coupling, statistics="kept" if averaged else "all")])
        gated.module.eval()
        gated, _ = run(gated, [Functionalise(), FoldBatchNorm()], own_weights=False)
        self._gated, self._coupling = gated, coupling
        self.total = coupling.total
        self.fixed_batch = None if traced.dynamic_batch else batch_size(traced)
        ones = gated.parameter(GATES)
        self.device, self.dtype = ones.device, ones.dtype
        self._nodes = list(gated.graph.nodes)
        inputs = [node for node in self._nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ModelError(f"importance: the network takes {len(inputs)} inputs, want images alone")
        self._input = inputs[0]
        self._logits, kind = _head(output_of(gated))
        self.divergence: Divergence = DIVERGENCES[(kind or "softmax") if divergence == AUTO else divergence]
        self.impure = next((node.name for node in self._nodes if is_impure(node)), None)
        self._constants = self._prepared()

    @property
    def pure(self) -> bool:
        """Whether no op writes into a tensor that another one reads."""
        return self.impure is None

    def ones(self) -> Tensor:
        """Open gates ``(N + 1,)``."""
        return torch.ones(self.total + 1, dtype=self.dtype, device=self.device)

    def values(self, images: Tensor, gates: Tensor) -> Values:
        """What every section may read: images, gates and parameters."""
        if not self.pure:
            images = images.clone()
        return {**self._constants, self._input: images, self.gates: gates}

    def on_device(self, images: Tensor) -> Tensor:
        """Images where and how the network reads them fastest."""
        images = images.to(self.device)
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last(images) else images

    @cached_property
    def intact(self) -> Section:
        """The whole network with all gates open; it also computes what only closed gates read."""
        alias = self._aliases(()) if self.pure else {}
        among = needed(self._logits, {}) if self.pure else set(self._nodes)
        return Section(calls(self._nodes, among - alias.keys()), alias, self._logits)

    @cached_property
    def gated(self) -> Section:
        """The whole network with all gates as variables."""
        return Section(
            calls(self._nodes, needed(self._logits, {}) if self.pure else set(self._nodes)), {}, self._logits
        )

    @cached_property
    def tails(self) -> tuple[Tail, ...]:
        """One per group, in the order of the coupling."""
        return tuple(self._tail(group) for group in self._coupling.groups)

    @cached_property
    def work(self) -> int:
        """Multiply-adds and elements written of one forward pass of one image."""
        return self._work(self.intact)

    def per_image(self, total: int) -> float:
        """An amount for the example batch, for one image."""
        return total / batch_size(self._gated)

    def _tail(self, group: Group) -> Tail:
        if not self.pure:
            return Tail(group, self.intact, self.work)
        active = [mask for mask, channels in self._masks.items() if np.isin(channels, group.channels).any()]
        alias = self._aliases(active)
        again = reachable(active) & needed(self._logits, alias)
        if not again:
            return Tail(group, None, 0)
        section = Section(calls(self._nodes, again), alias, self._logits)
        return Tail(group, section, self._work(section))

    def _work(self, section: Section) -> int:
        each = [self._macs.get(node.name, 0) for node in section.nodes]
        written = sum(value.numel() for node in section.nodes if isinstance(value := node.meta.get("val"), Tensor))
        return sum(each) + int(self.per_image(written))

    @cached_property
    def _macs(self) -> dict[str, int]:
        return macs(self._gated, self._coupling.rules)

    @cached_property
    def _masks(self) -> dict[Node, np.ndarray[Any, np.dtype[np.int64]]]:
        """The nodes that lay gates out like a tensor, and the channels in each."""
        found = {}
        for user in self.gates.users:
            labels = user.args[1][0]  # type: ignore[index]
            found[user] = self._gated.parameter(str(labels.target)).cpu().numpy()  # type: ignore[union-attr]
        return found

    @cached_property
    def gates(self) -> Node:
        """The node that holds the gates."""
        return self._gated.node_of(GATES)

    def _aliases(self, active: Collection[Node]) -> dict[Node, Node]:
        """What gives its input back, with that input: gates that stay open, dropout."""
        closed = reachable(active)
        laid_out = self._only_gates()
        found = {node: node.args[0] for node in self._nodes if _is_idle_dropout(node)}
        for node in self._nodes:
            if node.target is _ATEN.mul.Tensor and isinstance(node.args[0], Node):
                value, factor = node.args
                if factor in laid_out and factor not in closed and value not in laid_out:
                    found[node] = value
        return found

    def _only_gates(self) -> set[Node]:
        """Masks, and masks cast or repeated to fit."""
        found = set(self._masks)
        fits = (_ATEN.to.dtype, _ATEN.repeat.default, _ATEN.repeat_interleave.self_int)
        for node in self._nodes:
            if node.target in fits and node.args[0] in found:
                found.add(node)
        return found

    def _prepared(self) -> Values:
        """Parameters and constants, without gradients, in the memory format of the images."""
        found: Values = {}
        held: dict[int, Tensor] = {}
        for node in self._nodes:
            if node.op != "get_attr" or node.target == GATES:
                continue
            tensor = self._gated.parameter(str(node.target))
            if id(tensor) not in held:
                plain = tensor.detach()
                last = self._channels_last(plain) and isinstance(tensor, torch.nn.Parameter)
                held[id(tensor)] = plain.contiguous(memory_format=torch.channels_last) if last else plain
            found[node] = held[id(tensor)]
        return found

    def _channels_last(self, tensor: Tensor) -> bool:
        """Whether a tensor is worth the memory format: oneDNN reads it as it is, and reorders the other one."""
        return self.pure and self.device.type == "cpu" and tensor.ndim == 4 and tensor.dtype == torch.float32


def _is_idle_dropout(node: Node) -> bool:
    """Whether a node gives its input back, as dropout does in evaluation mode."""
    return node.target in _DROPOUTS and mode_of(node) is False


def is_impure(node: Node) -> bool:
    """Whether a call may write into a tensor that others read, or is none that this can be told of."""
    if _is_idle_dropout(node):
        return False
    if node.op != "call_function":
        return node.op not in ("placeholder", "get_attr", "output")
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def output_of(network: TracedModel) -> Node:
    """The first tensor of a structured output; of a mapping ``out`` or ``logits``, as in training.

    Raises: ModelError.
    """
    flat = pytree.tree_leaves(network.graph.output_node().args[0], is_leaf=lambda leaf: leaf is None)
    code = network.graph._codegen
    spec = getattr(getattr(code, "pytree_info", None), "out_spec", None)
    found: Any = flat if spec is None else pytree.tree_unflatten(flat, spec)
    while not isinstance(found, Node):
        if isinstance(found, Mapping) and found:
            named = [found[key] for key in ("out", "logits") if key in found]
            found = named[0] if named else next(iter(found.values()))
        elif isinstance(found, tuple | list) and found:
            found = found[0]
        else:
            raise ModelError(f"importance: the network returns a {type(found).__name__}: want logits in a tensor")
    if not isinstance(found.meta.get("val"), Tensor):
        raise ModelError("importance: the network's first output is no tensor: want logits in a tensor")
    return found


def _head(output: Node) -> tuple[Node, str | None]:
    """The logits behind an output, and the divergence that its last op stands for."""
    kind = _HEADS.get(output.target)
    if kind is None or not isinstance(output.args[0], Node):
        return output, None
    if kind == "softmax" and output.args[1] not in (_CLASSES, _CLASSES - output.args[0].meta["val"].ndim):
        return output, None
    return output.args[0], kind
