"""Gate: multiply channels by numbers that can be changed, without deleting anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

from curlfx.coupling import Coupling
from curlfx.graph.traced import TracedModel
from curlfx.passes.base import Pass
from curlfx.passes.kept_statistics import normalise_over_kept

GATES = "curlfx_gates"


@dataclass(frozen=True)
class Gate(Pass):
    """Multiply by ``gates[channel]`` at the input of every contraction that reads labelled channels.

    The gates are a buffer ``curlfx_gates`` of shape ``(N + 1,)``, ones at first; entry 0 belongs to what stays.

    Attributes:
        coupling: Coupling of the very network the pass runs on.
        statistics: ``"all"``: LayerNorm and GroupNorm average over all channels, as in the intact network;
            ``"kept"``: over the channels whose gate is not 0, as in the slim network.
    """

    name: ClassVar[str] = "gate"
    coupling: Coupling
    statistics: Literal["all", "kept"] = "all"

    def requires(self, graph: TracedModel) -> None:
        """Raises: InvariantError when the coupling is of another network."""
        self.coupling.check(graph)

    def rewrite(self, graph: TracedModel) -> bool:
        """Insert the gates. Returns whether any channel can be gated."""
        if not self.coupling.total:
            return False
        graph.add_buffer(GATES, torch.ones(self.coupling.total + 1, dtype=_dtype(graph.module)))
        masks = Masks(graph, self.coupling)
        nodes = {node.name: node for node in graph.graph.nodes}
        if self.statistics == "kept":
            nodes |= normalise_over_kept(graph, self.coupling, masks.arrays)
        for reader, source in self.coupling.reads:
            node, value = nodes[reader], nodes[source]
            factors = masks.arrays(source)
            if not factors:
                continue
            gated = value
            with graph.graph.inserting_before(node):
                for factor in factors:
                    gated = graph.graph.call_function(torch.ops.aten.mul.Tensor, (gated, factor))
            node.replace_input_with(value, gated)
        graph.recompile()
        return True


class Masks:
    """Nodes that hold the gates laid out like a tensor's labels; each layout is made once.

    Args:
        graph: The network being rewritten; it already has the gates' buffer.
        coupling: Its coupling.
    """

    def __init__(self, graph: TracedModel, coupling: Coupling) -> None:
        self._graph = graph
        self._coupling = coupling
        self._known: dict[tuple[tuple[int, ...], bytes], Node] = {}
        self._gates = graph.node_of(GATES)

    def arrays(self, of: str) -> list[Node]:
        """Masks broadcastable to the output of the node of that name, one per label array."""
        return [self._mask(array) for array in self._coupling.labels(of)]

    def _mask(self, array: Any) -> Node:
        key = (tuple(array.shape), array.tobytes())
        if key not in self._known:
            name = f"curlfx_channels_{len(self._known)}"
            self._graph.add_buffer(name, torch.from_numpy(array.copy()))
            labels = self._graph.node_of(name)
            with self._graph.graph.inserting_after(_later(self._gates, labels)):
                self._known[key] = self._graph.graph.call_function(torch.ops.aten.index.Tensor, (self._gates, [labels]))
        return self._known[key]


def set_gates(module: nn.Module, gates: Tensor) -> None:
    """Write the gates of a gated module.

    Shapes: gates ``(N + 1,)``; entry 0 should be 1.
    """
    with torch.no_grad():
        module.get_buffer(GATES).copy_(gates)


def _later(a: Node, b: Node) -> Node:
    """Whichever of two nodes comes later in the graph."""
    return b if a < b else a


def _dtype(module: nn.Module) -> torch.dtype:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.get_default_dtype()
