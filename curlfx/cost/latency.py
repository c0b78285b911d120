"""Latency for any keep set, from measured times of every node at some widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from curlfx.cost.counting import Alive, Floats
from curlfx.cost.quantities import Quantities

SAME = 1e-6  # relative difference up to which sizes at the measured widths are those of a quantity


@dataclass(frozen=True, eq=False)
class NodeSamples:
    """One node of the graph that the runtime runs, in ``P`` networks, the dense one first.

    Attributes:
        name: As the runtime calls it.
        op_type: Its operator.
        sizes: Numbers that its time may grow with, ``(F, P)``: elements written, elements read, multiply-adds; not a
            number where the network does not have it.
        milliseconds: Its time, ``(P,)``; 0 where the network does not have it.
    """

    name: str
    op_type: str
    sizes: Floats
    milliseconds: Floats


@dataclass(frozen=True)
class PredictionError:
    """Relative errors of predicted latencies of networks that the fit had not seen.

    Attributes:
        median: Of the absolute relative errors.
        worst: The largest of them.
        networks: How many networks.
    """

    median: float
    worst: float
    networks: int


class LatencyModel:
    """Milliseconds of a network after any keep set.

    The time of a node is a sum of a constant and of non-negative multiples of the sizes that it works on: what it
    writes, what it reads, its multiply-adds, each as they are and with channels rounded up to the block. Latency is the
    sum over the nodes.

    Attributes:
        quantities: The sizes that any node's time grows with.
        weights: Milliseconds per share of a quantity, ``(nodes, Q, 2)``.
        names: Of the nodes.
        unexplained: Share of the dense network's time in nodes that have no size like the network's; they are taken to
            grow with the quantity that comes nearest.
    """

    def __init__(self, quantities: Quantities, names: Sequence[str], weights: Floats, *, unexplained: float) -> None:
        self.names, self.unexplained = tuple(names), unexplained
        used = np.flatnonzero(weights.any(axis=(0, 2)))
        self.quantities = quantities.only(used.tolist())
        self.weights = weights[:, used]
        self._total: Floats = self.weights.sum(axis=0)

    @classmethod
    def fit(cls, quantities: Quantities, alive: Sequence[Alive], nodes: Sequence[NodeSamples]) -> LatencyModel:
        """Fit to measurements.

        Args:
            quantities: Of the dense network.
            alive: Living channels of the ``P`` networks, the dense one first.
            nodes: What was measured of each node; in each network their times add up to its latency. None at all: a
                network that takes no time.
        """
        shares = np.stack([quantities.shares(each) for each in alive])
        return cls._fitted(quantities, shares, nodes)

    @classmethod
    def _fitted(cls, quantities: Quantities, shares: Floats, nodes: Sequence[NodeSamples]) -> LatencyModel:
        weights = np.zeros((len(nodes), *shares.shape[1:]))
        strange = 0.0
        weight = np.maximum(_latencies(nodes, len(shares)), 1e-9)  # errors count relative to the network
        for position, node in enumerate(nodes):
            features, known = _features(node, shares)
            strange += 0.0 if known else float(node.milliseconds[0])
            columns = shares[:, features, :].reshape(weight.size, -1) / weight[:, None]
            found, _ = nnls(columns, node.milliseconds / weight)
            weights[position, features] = found.reshape(len(features), 2)
        names = [node.name for node in nodes]
        return cls(quantities, names, weights, unexplained=strange / float(weight[0]))

    def predict(self, alive: Alive) -> float:
        """Milliseconds when only the channels in ``alive`` ``(N + 1,)`` are left."""
        return float((self._total * self.quantities.shares(alive)).sum())

    def node_ms(self, alive: Alive) -> dict[str, float]:
        """Milliseconds by node of the dense network's optimised graph."""
        times = np.einsum("nqk,qk->n", self.weights, self.quantities.shares(alive))
        return dict(zip(self.names, times.tolist(), strict=True))

    @classmethod
    def cross_validate(cls, quantities: Quantities, alive: Sequence[Alive], nodes: Sequence[NodeSamples]) -> Floats:
        """Leave each of the networks but the dense one out, fit to the others, and predict it.

        Returns: Predicted over measured latency, minus 1, ``(P,)``; 0 for the dense network, and without any node.
        """
        shares = np.stack([quantities.shares(each) for each in alive])
        total = _latencies(nodes, len(alive))
        errors = np.zeros(len(alive))
        if not nodes:
            return errors
        for left_out in range(1, len(alive)):
            rest = np.flatnonzero(np.arange(len(alive)) != left_out)
            others = [
                NodeSamples(node.name, node.op_type, node.sizes[:, rest], node.milliseconds[rest]) for node in nodes
            ]
            model = cls._fitted(quantities, shares[rest], others)
            errors[left_out] = model.predict(alive[left_out]) / total[left_out] - 1
        return errors


def _latencies(nodes: Sequence[NodeSamples], networks: int) -> Floats:
    """Latency of every network, ``(P,)``, the sum over its nodes."""
    total: Floats = np.sum([np.zeros(networks), *(node.milliseconds for node in nodes)], axis=0)
    return total


def _features(node: NodeSamples, shares: Floats) -> tuple[list[int], bool]:
    """Quantities that a node's sizes are proportional to, the constant one last, and whether each was found.

    Shapes: shares ``(P, Q, 2)``.
    """
    constant = shares.shape[1] - 1
    found, known = [], True
    for sizes in node.sizes:
        there = np.isfinite(sizes)
        if not there[0] or sizes[0] <= 0:
            continue
        share = sizes[there] / sizes[0]
        distance = np.abs(shares[there] - share[:, None, None]).max(axis=0)  # (Q, 2)
        nearest = int(distance.min(axis=1).argmin())
        known = known and bool(distance[nearest].min() <= SAME)
        found.append(nearest)
    return [*dict.fromkeys(position for position in found if position != constant), constant], known
