"""Widths: a supernet, one set of weights for every choice of widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Graph, Node

from curlfx.coupling import Coupling
from curlfx.errors import InvariantError, UsageError
from curlfx.graph.modes import argument_of, set_argument
from curlfx.graph.traced import TracedModel
from curlfx.passes.base import Pass
from curlfx.passes.gate import Gate

_MEAN, _VARIANCE, _TRAINING, _MOMENTUM = 3, 4, 5, 6  # arguments of aten.batch_norm


@dataclass(frozen=True)
class Widths(Pass):
    """Gate every channel and normalise by the batch: some gates closed, the graph is that slim network in training.

    The gates are those of `curlfx.passes.gate.Gate`; what is computed of a channel that stays does not depend on those
    that go, so a batch normalisation sees the statistics of the slim network. It leaves the mean and variance of the
    batch in its running buffers, for whoever measures them. Normalisations across channels run over the open ones.
    Dropout stays off: one forward pass is the target of the others.

    Attributes:
        coupling: Coupling of the very network the pass runs on.
    Source: stage-wise pruning (arXiv:2011.04908); batch statistics for every width as in slimmable networks
        (arXiv:1903.05134).
    """

    name: ClassVar[str] = "widths"
    coupling: Coupling

    def requires(self, traced: TracedModel) -> None:
        """Raises: UsageError for a network without free channels or in training mode; InvariantError as `Gate`."""
        self._gate.requires(traced)
        if not self.coupling.groups:
            raise UsageError("widths: no channel of this network can go; curlfx inspect says why")
        if traced.module.training:
            raise UsageError("widths: the network is in training mode; call module.eval() first")

    def rewrite(self, traced: TracedModel) -> bool:
        """Insert the gates, and let every batch normalisation use its batch."""
        changed = self._gate.rewrite(traced)
        for node in batch_norms(traced.graph):
            set_argument(node, _TRAINING, True)
            set_argument(node, _MOMENTUM, 1.0)
        traced.recompile()
        return changed

    def ensures(self, before: TracedModel, after: TracedModel) -> None:
        """Raises: InvariantError when a batch normalisation is missing or would use what it remembers."""
        count = len(batch_norms(before.graph))
        ready = [node for node in batch_norms(after.graph) if argument_of(node, _TRAINING) is True]
        if len(ready) != count:
            raise InvariantError(f"{len(ready)} of {count} batch normalisations use their batch")

    @property
    def _gate(self) -> Gate:
        return gate_of(self.coupling)


def gate_of(coupling: Coupling) -> Gate:
    """The pass that gates a network so that it computes what the slim one does, normalisations included."""
    averaged = any(group.statistics_change for group in coupling.groups)
    return Gate(coupling, statistics="kept" if averaged else "all")


def batch_norms(graph: Graph) -> list[Node]:
    """Batch normalisations that keep running statistics."""
    found = graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    return [node for node in found if all(isinstance(buffer, Node) for buffer in statistics_of(node))]


def statistics_of(node: Node) -> tuple[Node, Node]:
    """The nodes of running mean and variance of a batch normalisation (None where it keeps none)."""
    return argument_of(node, _MEAN), argument_of(node, _VARIANCE)  # type: ignore[return-value]
