"""Relevance of every node: one pass forwards that keeps all values, one backwards that spends them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from curlfx.cost.macs import batch_size
from curlfx.errors import DataError, ModelError
from curlfx.graph import TracedModel
from curlfx.graph.effects import is_impure
from curlfx.graph.logits import logits_of, output_of
from curlfx.lrp.call import PAPER, Call, Flow, Rule, Settings, described
from curlfx.lrp.gating import op_name
from curlfx.lrp.table import rule_for
from curlfx.passes.fold_batch_norm import FoldBatchNorm
from curlfx.passes.functionalise import Functionalise
from curlfx.passes.pipeline import run

_SHAPED = frozenset(
    {f"new_{kind}" for kind in ("zeros", "ones", "full", "empty")}
    | {f"{kind}_like" for kind in ("zeros", "ones", "full", "empty", "rand", "randn")}
)
"""Ops that look at the shape of a tensor only."""
Values = dict[Node, Any]
Visit = Callable[[Node, Flow], None]


@dataclass
class Ledger:
    """What became of the relevance of one backward pass; sums over all images, in float64.

    Attributes:
        seed: Relevance put in at the logits.
        scale: Its sizes, summed.
        change: By node, what its inputs got less what it had: 0 where relevance is conserved.
        absorbed: By node, what constants got: class tokens, biases behind nothing but zeros, numbers filled in.
        clips: By node, how many elements of a sum cancelled, where any did.
        cuts: By node, what crosses the cut through the graph in front of it, with all that was absorbed behind it.
    """

    seed: float
    scale: float
    change: dict[str, float] = field(default_factory=dict)
    absorbed: dict[str, float] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, float] = field(default_factory=dict)


class Propagation:
    """A copy of a network that hands relevance back, in evaluation mode, without in-place ops.

    Args:
        traced: The network, left as it is; it shares its tensors with the copy.
        settings: How relevance is distributed.
        rules: The user's rules, by ``OpOverload`` or by name such as ``"aten::softmax"``.

    Attributes:
        nodes: All calls that the logits depend on, in order.
        logits: The node that relevance starts from, before a final sigmoid or softmax.
        fixed_batch: The one batch size that the graph takes; None: any.
        device: Where it runs.
        dtype: Of images and relevance.

    Raises: ModelError when there is not one input, no tensor among the outputs, or an op that writes into a tensor.
    """

    def __init__(self, traced: TracedModel, settings: Settings = PAPER, rules: Mapping[Any, Rule] | None = None):
        clone = traced.clone()
        clone.module.eval()
        passes = [Functionalise(), *([FoldBatchNorm()] if settings.folds else [])]
        self._traced, _ = run(clone, passes, own_weights=False)
        self.settings, self._rules = settings, rules or {}
        self.fixed_batch = None if traced.dynamic_batch else batch_size(traced)
        inputs = self._traced.graph.find_nodes(op="placeholder")
        if len(inputs) != 1:
            raise ModelError(f"relevance: the network takes {len(inputs)} inputs, want images alone")
        self.input: Node = inputs[0]
        self.logits, _ = logits_of(output_of(self._traced))
        self.nodes = self._needed()
        self._live = self._reached()
        self._check_pure()
        if self.logits not in self._live:
            raise ModelError("relevance: the logits do not depend on the images by floating-point numbers")
        held = [*self._traced.module.parameters(), *pytree.tree_leaves(traced.example_inputs)]
        first = next(tensor for tensor in held if _is_floating(tensor))
        self.device, self.dtype = first.device, first.dtype

    @property
    def bytes_per_image(self) -> float:
        """Memory that the values of one image take."""
        values = (node.meta.get("val") for node in self.nodes)
        held = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
        return held / batch_size(self._traced)

    def is_live(self, node: Node) -> bool:
        """Whether a node carries relevance."""
        return node in self._live

    def forward(self, images: Tensor) -> Values:
        """The values of all nodes.

        Raises: DataError when the images do not fit.
        """
        if not images.is_floating_point():
            raise DataError(f"images are {images.dtype}: want floating-point numbers, which relevance can arrive at")
        values: Values = {self.input: images.to(self.device, self.dtype)}
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for node in self._traced.graph.find_nodes(op="get_attr"):
                held = self._traced.parameter(str(node.target)).detach()
                values[node] = held.clone() if node in self._written else held
            for node in self.nodes:
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                try:
                    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
                except torch.OutOfMemoryError as cause:
                    raise DataError(f"{len(images)} images at once do not fit into memory; give fewer") from cause
                except RuntimeError as cause:
                    raise DataError(
                        f"images {tuple(images.shape)} do not fit the network at {described(node)}: {cause}"
                    ) from cause
        return values

    def backward(self, values: Values, seed: Tensor, visit: Visit) -> Ledger:
        """Hand relevance from the logits back to the images.

        Args:
            values: Of `forward`; used up on the way, so that both passes take the memory of one.
            seed: Relevance of the logits, of their shape.
            visit: Is told the relevance of each node, the input included, last node first, once it is complete.

        Raises: ModelError for an op without a rule, named with what to do.
        """
        ledger = Ledger(_total(seed), _total(seed.abs()))
        waiting: dict[Node, Flow] = {self.logits: seed}
        crossing = ledger.seed
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for node in reversed(self.nodes):
                relevance = waiting.pop(node, None)
                if relevance is not None:
                    visit(node, relevance)
                    ledger.change[node.name] = self._hand_on(node, relevance, values, waiting, ledger)
                    crossing += ledger.change[node.name]
                    ledger.cuts[node.name] = crossing
                del values[node]
            arrived = waiting.pop(self.input, None)
            maps = torch.zeros_like(values[self.input]) if arrived is None else arrived
            if not math.isfinite(_total(maps)):
                raise ModelError(
                    "relevance grew beyond all numbers on its way to the images: some sum of products nearly cancels; "
                    "want rule 'alpha-beta', or a larger epsilon with batch_norm='fold'"
                )
            visit(self.input, maps)
        return ledger

    def _hand_on(self, node: Node, relevance: Flow, values: Values, waiting: dict[Node, Flow], ledger: Ledger) -> float:
        """Give the inputs of a call their parts; returns how much more these are than what the call had."""
        if node.target is operator.getitem:
            source, place = node.args[0], node.args[1]
            slots: Any = waiting.setdefault(source, [None] * len(values[source]))  # type: ignore[arg-type, index]
            slots[place] = relevance if slots[place] is None else slots[place] + relevance
            return 0.0
        call = Call(node, values, self._live, self.settings)
        given = self._rule(node)(call, relevance)
        handed = 0.0
        written = call.nodes()
        unknown = [name for name in given if name not in written]
        if unknown:
            raise ModelError(
                f"{call.place}: its rule gives relevance to '{unknown[0]}': want tensors among its arguments, "
                f"which are {', '.join(written)}"
            )
        for name, part in given.items():
            sources = written[name] if isinstance(written[name], list) else [written[name]]
            parts = [part] if isinstance(part, Tensor) else [None] if part is None else part
            for source, each in zip(sources, parts, strict=True):  # type: ignore[arg-type]
                if isinstance(source, Node) and each is not None:
                    amount = _total(each)
                    handed += amount
                    if source in self._live:
                        before = waiting.get(source)
                        waiting[source] = each if before is None else before + each  # type: ignore[operator]
                    elif amount:
                        ledger.absorbed[source.name] = ledger.absorbed.get(source.name, 0.0) + amount
        if call.idle:
            handed += call.idle
            ledger.absorbed[node.name] = ledger.absorbed.get(node.name, 0.0) + call.idle
        if call.clips:
            ledger.clips[node.name] = call.clips
        return handed - _total(relevance)

    def _rule(self, node: Node) -> Rule:
        live = sum(source in self._live for source in node.all_input_nodes)
        rule = rule_for(node.target, live, self._rules)
        if rule is None:
            name = getattr(getattr(node.target, "_schema", None), "name", str(node.target))
            raise ModelError(
                f"{described(node)}: no rule says how it hands relevance on; write one and pass "
                f"rules={{'{name}': rule}} (docs/relevance.md, 'An op without a rule')"
            )
        return rule

    def _needed(self) -> list[Node]:
        """The calls that the logits depend on, with all that write into a tensor."""
        waiting = [self.logits, *(node for node in self._traced.graph.nodes if is_impure(node))]
        found = set(waiting)
        while waiting:
            new = [source for source in waiting.pop().all_input_nodes if source not in found]
            found.update(new)
            waiting.extend(new)
        return [node for node in self._traced.graph.nodes if node in found and node.op == "call_function"]

    def _check_pure(self) -> None:
        """Allow writing into tables that do not depend on the images. Raises: ModelError for anything else."""
        written: set[Node] = set()
        for node in self.nodes:
            if is_impure(node):
                if node in self._live or any(source in self._live for source in node.all_input_nodes):
                    raise ModelError(
                        f"relevance: {described(node)} writes into a tensor that others may read; write that line "
                        "without an in-place op"
                    )
                written.add(node)
        waiting = list(written)
        while waiting:
            new = [source for source in waiting.pop().all_input_nodes if source not in written]
            written.update(new)
            waiting.extend(new)
        self._written = written

    def _reached(self) -> Collection[Node]:
        """The floating-point values that depend on the images, by floating-point values only."""
        live = {self.input}
        for node in self.nodes:
            reads = op_name(node) not in _SHAPED and any(source in live for source in node.all_input_nodes)
            if reads and _is_floating(node.meta.get("val")):
                live.add(node)
        return live


def _is_floating(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_floating(each) for each in value)
    return isinstance(value, Tensor) and value.is_floating_point()


def _total(relevance: Flow) -> float:
    if isinstance(relevance, Tensor):
        return float(relevance.sum(dtype=torch.float64))
    return sum(_total(each) for each in relevance if each is not None)
