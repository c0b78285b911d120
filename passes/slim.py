"""Slim: delete channels for good."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from curlfx.coupling import Coupling, GroupId
from curlfx.errors import InvariantError
from curlfx.graph.constants import Constants
from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel
from curlfx.labels.compact import Bools, compact, kept_along, kept_shape
from curlfx.ops.extension import resize_by
from curlfx.ops.resize import Resizing
from curlfx.passes.base import Pass


@dataclass(frozen=True)
class Slim(Pass):
    """Delete the channels that ``keep`` leaves out, from every tensor coupled to them.

    Each parameter is gathered by the labels that arrive at it; every literal shape argument follows.

    Attributes:
        coupling: Coupling of the very network the pass runs on.
        keep: Channels to keep, per coupling group, strictly increasing in ``[0, width)``; other groups stay whole.
    """

    name: ClassVar[str] = "slim"
    coupling: Coupling
    keep: Mapping[GroupId, Sequence[int]]

    def requires(self, graph: TracedModel) -> None:
        """Raises: KeepError for a wrong choice, InvariantError when the coupling is of another network."""
        self.coupling.alive(self.keep)
        self.coupling.check(graph)

    def rewrite(self, graph: TracedModel) -> bool:
        """Gather parameters, rewrite literals. Returns whether any channel went."""
        alive = self._alive()
        if alive.all():
            return False
        old = {node: shape_of(node) for node in graph.graph.nodes if _is_tensor(node)}
        new = {node: kept_shape(shape, self.coupling.labels(node.name), alive) for node, shape in old.items()}
        for node in list(graph.graph.nodes):
            if node.op == "call_function":
                self._resize(graph, node, old, new, alive)
        for name in self.coupling.tables:
            self._narrow(graph, name, alive)
        graph.set_parameters(self._gathered(graph, alive))
        graph.recompile()
        return True

    def ensures(self, before: TracedModel, after: TracedModel) -> None:
        """Every tensor has exactly the shape its labels say. Raises: InvariantError."""
        alive = self._alive()
        dense = {node.name: node for node in before.graph.nodes if _is_tensor(node)}
        for node in after.graph.nodes:
            if node.name in dense and _is_tensor(node):
                want = self._computed_shape(dense[node.name], alive)
                if shape_of(node) != want:
                    raise InvariantError(
                        f"after slim: node '{node.name}' ({node.target}) has shape {shape_of(node)}, "
                        f"its labels say {want}; a bug in this pass, please report it with the network"
                    )

    def _computed_shape(self, node: Node, alive: Bools) -> tuple[int, ...]:
        """Shape that a node of the dense graph computes after slimming; of a table its readers get less."""
        axes = self.coupling.tables.get(node.name, ())
        arrays = [a for a in self.coupling.labels(node.name) if not any(a.shape[axis] > 1 for axis in axes)]
        return kept_shape(shape_of(node), arrays, alive)

    def _narrow(self, graph: TracedModel, name: str, alive: Bools) -> None:
        """Put a selection of what stays between a computed constant and its readers."""
        node = next(node for node in graph.graph.nodes if node.name == name)
        value, shape = node, shape_of(node)
        for axis in self.coupling.tables[name]:
            kept = kept_along(shape, self.coupling.labels(name), alive, axis)[0]
            if kept.all():
                continue
            positions = _add_vector(graph, torch.from_numpy(np.flatnonzero(kept)))
            with graph.graph.inserting_after(max(value, positions)):
                value = graph.graph.call_function(torch.ops.aten.index_select.default, (value, axis, positions))
        if value is not node:
            node.replace_all_uses_with(value, delete_user_cb=lambda user: not _selects(user, node, value))

    def _alive(self) -> Bools:
        """Which cells of the coupling stay."""
        return self.coupling.cells.alive(self.coupling.alive(self.keep))

    def _gathered(self, graph: TracedModel, alive: Bools) -> dict[str, Tensor]:
        """Parameters that lose channels, by name; nothing is made for the others."""
        result = {}
        with torch.no_grad():
            for name in dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "get_attr"):
                tensor = graph.parameter(name)
                kept = compact(tensor, self.coupling.parameter_labels(name), alive)
                if kept is not tensor:
                    result[name] = kept
        return result

    def _resize(
        self,
        graph: TracedModel,
        node: Node,
        old: Mapping[Node, tuple[int, ...]],
        new: Mapping[Node, tuple[int, ...]],
        alive: Bools,
    ) -> None:
        rewrite = resize_by(node.target, self.coupling.rules)
        if rewrite is None:
            return

        def kept(of: Node, axis: int) -> Bools:
            found = kept_along(old[of], self.coupling.labels(of.name), alive, axis)
            return np.asarray(found[0])

        def size(of: Node) -> tuple[int, ...]:
            return self._computed_shape(of, alive) if of is node and node.name in self.coupling.tables else new[of]

        def renumber(index: Node, change: Callable[[Tensor], Tensor]) -> Node:
            return _add_vector(graph, change(Constants(graph)(index).cpu()))

        value = node.meta["val"]
        shapes = []
        if isinstance(value, (tuple, list)):
            for part, arrays in zip(value, self.coupling.part_labels(node.name, len(value)), strict=True):
                shapes.append(kept_shape(tuple(part.shape), arrays, alive))
        rewrite(Resizing(node, old.__getitem__, size, kept, shapes, renumber, partial(_add_vector, graph)))


def _add_vector(graph: TracedModel, positions: Tensor) -> Node:
    """A constant vector of positions as a buffer of the network."""
    taken = graph.tensors()
    name = next(n for i in itertools.count() if (n := f"curlfx_index_{i}") not in taken)
    graph.add_buffer(name, positions)
    return graph.node_of(name)


def _selects(user: Node, node: Node, value: Node) -> bool:
    """Whether a reader is one of the selections between a table and its last selection."""
    while value is not node:
        if value is user:
            return True
        value = value.all_input_nodes[0]
    return False


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
