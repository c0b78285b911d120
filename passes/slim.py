"""Slim: delete channels for good."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from curlfx.coupling import Coupling, GroupId
from curlfx.coupling.constants import Constants
from curlfx.errors import InvariantError
from curlfx.graph.shapes import shape_of
from curlfx.graph.traced import TracedModel
from curlfx.labels.compact import Bools, compact, kept_along, kept_shape
from curlfx.ops.resize import Resizing, resize_for
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
        graph.set_parameters(self._gathered(graph, alive))
        graph.recompile()
        return True

    def ensures(self, before: TracedModel, after: TracedModel) -> None:
        """Every tensor has exactly the shape its labels say. Raises: InvariantError."""
        alive = self._alive()
        dense = {node.name: node for node in before.graph.nodes if _is_tensor(node)}
        for node in after.graph.nodes:
            if node.name in dense and _is_tensor(node):
                want = kept_shape(shape_of(dense[node.name]), self.coupling.labels(node.name), alive)
                if shape_of(node) != want:
                    raise InvariantError(
                        f"after slim: node '{node.name}' ({node.target}) has shape {shape_of(node)}, "
                        f"its labels say {want}; a bug in this pass, please report it with the network"
                    )

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
        rewrite = resize_for(node.target)
        if rewrite is None:
            return

        def kept(of: Node, axis: int) -> Bools:
            found = kept_along(old[of], self.coupling.labels(of.name), alive, axis)
            return np.asarray(found[0])

        def renumber(index: Node, change: Callable[[Tensor], Tensor]) -> Node:
            taken = graph.tensors()
            name = next(n for i in itertools.count() if (n := f"curlfx_index_{i}") not in taken)
            graph.add_buffer(name, change(Constants(graph)(index).cpu()))
            return graph.node_of(name)

        value = node.meta["val"]
        shapes = []
        if isinstance(value, (tuple, list)):
            for part, arrays in zip(value, self.coupling.part_labels(node.name, len(value)), strict=True):
                shapes.append(kept_shape(tuple(part.shape), arrays, alive))
        rewrite(Resizing(node, old.__getitem__, new.__getitem__, kept, shapes, renumber))


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
