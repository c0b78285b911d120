"""Walk the graph once and run every op's label rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from curlfx.graph.constants import Constants, mutates
from curlfx.graph.source import where
from curlfx.graph.traced import TracedModel
from curlfx.labels.arrays import Arrays, along, support
from curlfx.labels.store import LabelStore
from curlfx.ops.call import Emission, OpCall, is_getitem
from curlfx.ops.joining import filled
from curlfx.ops.movement import expanded
from curlfx.ops.table import Rule, rule_for


@dataclass(frozen=True)
class Unsupported:
    """An op without a rule: where it stands and what it is; the labels that reach it were frozen."""

    node: str
    op: str
    where: str

    def __str__(self) -> str:
        place = f", {self.where}" if self.where else ""
        return f"UnsupportedOp: node '{self.node}' ({self.op}{place}): no rule; its channels stay frozen"


@dataclass
class Labelling:
    """What the walk found: raw labels per node (before ties are merged), the record, ops without a rule, own rules."""

    store: LabelStore
    emissions: dict[Node, Emission] = field(default_factory=dict)
    unsupported: list[Unsupported] = field(default_factory=list)
    rules: Mapping[Any, Rule] = field(default_factory=dict)


def propagate_labels(traced: TracedModel, rules: Mapping[Any, Rule] | None = None) -> Labelling:
    """Label every tensor of the graph.

    Args:
        traced: The network; nodes carry ``meta["val"]``.
        rules: The user's op rules, before the built-in table.
    """
    labelling = Labelling(LabelStore(), rules=dict(rules or {}))
    constant = Constants(traced)
    unchanged = not any(mutates(node) for node in traced.graph.nodes if node in constant)
    parameters: dict[int, tuple[str, Emission]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            labelling.emissions[node] = _parameter(traced, node, labelling.store, parameters)
        elif node.op == "call_function":
            emission = _call(node, labelling, constant, rules)
            if unchanged and node in constant and any(user not in constant for user in node.users):
                emission = _table(node, emission, labelling.store)
            labelling.emissions[node] = emission
        elif node.op == "output":
            _freeze_inputs(node, labelling, "an output of the network")
    return labelling


def _parameter(traced: TracedModel, node: Node, store: LabelStore, known: dict[int, tuple[str, Emission]]) -> Emission:
    """Labels of a parameter or buffer; the same tensor read twice, or under two names, has the same labels."""
    tensor = traced.parameter(str(node.target))
    if id(tensor) in known:
        name, emission = known[id(tensor)]
        if name in store.relabelled:
            emission = store.relabelled[name]
        return emission
    emission = store.parameter(str(node.target), tuple(tensor.shape))
    known[id(tensor)] = (str(node.target), emission)
    return emission


def _call(node: Node, labelling: Labelling, constant: Constants, rules: Mapping[Any, Rule] | None) -> Emission:
    if is_getitem(node):
        source, index = node.args
        emission = labelling.emissions.get(source, ()) if isinstance(source, Node) else ()
        return emission[index] if isinstance(emission, list) and isinstance(index, int) else ()
    value = node.meta.get("val")
    labelled = any(_has_labels(labelling.emissions.get(source)) for source in node.all_input_nodes)
    rule = rule_for(node.target, rules)
    if not (labelled or rule in (filled, expanded)) or not isinstance(value, (Tensor, tuple, list)):
        _freeze_if_read_as_number(node, labelling, value)
        return ()
    if rule is None:
        labelling.unsupported.append(Unsupported(node.name, str(node.target), where(node)))
        _freeze_inputs(node, labelling, f"no rule for {node.target}")
        return ()
    emission = rule(OpCall(node, labelling.emissions, labelling.store, constant))
    if isinstance(emission, list):
        return [_varying(node, labelling.store, arrays) for arrays in emission]
    return _varying(node, labelling.store, emission)


def _table(node: Node, emission: Emission, store: LabelStore) -> Emission:
    """Labels for every axis of a computed constant that has none: its value can be narrowed after it was computed."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(emission, tuple):
        return emission
    known = {axis for array in emission for axis in support(array)}
    axes = tuple(axis for axis, size in enumerate(value.shape) if axis not in known and int(size) > 1)
    fixed = all(isinstance(size, int) for size in value.shape)
    if not axes or not fixed:
        return emission
    store.tables[node.name] = axes
    fresh = [along(store.fresh(value.shape[a], node.name, a, parameter=False), value.ndim, a) for a in axes]
    return (*emission, *fresh)


def _varying(node: Node, store: LabelStore, arrays: Arrays) -> Arrays:
    """Arrays that vary somewhere; a label that all of a tensor carries stays, or the whole tensor would go with it."""
    for array in arrays:
        if not support(array):
            store.freeze(array, node.name, "a whole tensor hangs on this one channel")
    return tuple(array for array in arrays if support(array))


def _has_labels(emission: Emission | None) -> bool:
    return any(emission) if isinstance(emission, list) else bool(emission)


def _freeze_if_read_as_number(node: Node, labelling: Labelling, value: Any) -> None:
    """A labelled tensor that turns into a plain number (``item``) must stay whole; sizes are recomputed instead."""
    if not isinstance(value, Tensor) and "sym_size" not in str(node.target):
        _freeze_inputs(node, labelling, f"read as a number by {node.target}")


def _freeze_inputs(node: Node, labelling: Labelling, reason: str) -> None:
    for source in node.all_input_nodes:
        emission = labelling.emissions.get(source, ())
        groups = emission if isinstance(emission, list) else [emission]
        for arrays in groups:
            for array in arrays:
                labelling.store.freeze(array, node.name, reason)
