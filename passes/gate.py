"""Gate: multiply channels by numbers that can be changed, without deleting anything."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from curlfx.cost.macs import batch_size
from curlfx.coupling import Coupling
from curlfx.coupling.vectors import Ints
from curlfx.graph.shapes import propagate
from curlfx.graph.traced import TracedModel
from curlfx.labels.compact import innermost
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
        propagate(graph)  # the network may have been cast since
        graph.add_buffer(GATES, torch.ones(self.coupling.total + 1, dtype=_dtype(graph.module)))
        masks = Masks(graph, self.coupling)
        nodes = {node.name: node for node in graph.graph.nodes}
        if self.statistics == "kept":
            nodes |= normalise_over_kept(graph, self.coupling, masks.arrays)
        for (reader, source), axes in self.coupling.reads.items():
            node, value = nodes[reader], nodes[source]
            factors = masks.arrays(source, value, axes)
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
        self._dtype = graph.parameter(GATES).dtype
        self._batch = batch_size(graph)

    def arrays(self, of: str, value: Node, axes: Sequence[int] | None = None) -> list[Node]:
        """Masks broadcastable to ``value``, and of its type, for the channels of the node named ``of``, each once.

        Only those that end at one of ``axes``, where given.
        """
        found = self._coupling.channels_in(self._coupling.labels(of))
        return [self._fitted(array, value) for array in found if axes is None or innermost(array) in (-1, *axes)]

    def _fitted(self, array: Ints, value: Node) -> Node:
        """The mask of one array. What the batch is merged into (``batch * heads``) is repeated as often as needed."""
        call = self._graph.graph.call_function
        once, axes = _once(array, self._batch) if self._graph.dynamic_batch else (array, {})
        mask, dtype = self._mask(once), value.meta["val"].dtype
        last = mask
        if dtype != self._dtype:
            with self._graph.graph.inserting_after(_later(mask, value)):
                last = call(torch.ops.aten.to.dtype, (mask, dtype))
        for axis, each in axes.items():
            with self._graph.graph.inserting_after(_later(last, value)):
                size = call(torch.ops.aten.sym_size.int, (value, axis))
            with self._graph.graph.inserting_after(size):
                times = call(operator.floordiv, (size, once.shape[axis]))
            with self._graph.graph.inserting_after(times):
                if each:
                    last = call(torch.ops.aten.repeat_interleave.self_int, (last, times, axis))
                else:
                    counts: list[int | Node] = [times if other == axis else 1 for other in range(array.ndim)]
                    last = call(torch.ops.aten.repeat.default, (last, counts))
        return last

    def _mask(self, array: Ints) -> Node:
        key = (tuple(array.shape), array.tobytes())
        if key not in self._known:
            name = f"curlfx_channels_{len(self._known)}"
            self._graph.add_buffer(name, torch.from_numpy(array.copy()))
            labels = self._graph.node_of(name)
            with self._graph.graph.inserting_after(_later(self._gates, labels)):
                self._known[key] = self._graph.graph.call_function(torch.ops.aten.index.Tensor, (self._gates, [labels]))
        return self._known[key]


def _once(array: Ints, batch: int) -> tuple[Ints, dict[int, bool]]:
    """The array without the repetitions that the batch makes, and the axes that have them.

    True for axes where every entry is repeated by itself (``heads * batch``), False where all of them are in turn.
    """
    axes: dict[int, bool] = {}
    for axis, size in enumerate(array.shape):
        if batch < 2 or size < batch or size % batch:
            continue
        if size == batch and (array == array.take([0], axis)).all():
            continue
        first, *others = np.split(array, batch, axis)
        alone = array.take(np.arange(0, size, batch), axis)
        if all((other == first).all() for other in others):
            array, axes[axis] = first, False
        elif (np.repeat(alone, batch, axis) == array).all():
            array, axes[axis] = alone, True
    return array, axes


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
