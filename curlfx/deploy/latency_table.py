"""The latency table: measured times of every node of a network at many widths, and what follows for other widths."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Self

import numpy as np

from curlfx.cost import CostModel, LatencyModel, PredictionError
from curlfx.cost.counting import Alive, Floats
from curlfx.cost.latency import NodeSamples
from curlfx.cost.quantities import Quantities
from curlfx.coupling import Coupling
from curlfx.deploy.profile import NodeTime
from curlfx.errors import PlanError
from curlfx.files import write_bytes
from curlfx.graph import TracedModel
from curlfx.planning import Fingerprint

VERSION = 1
CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvTranspose", "ConvInteger", "QLinearConv"})
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul"})
FEWEST = 4  # networks without which no time can be told from another


@dataclass(frozen=True)
class Sample:
    """One network that was measured.

    Attributes:
        alive: Its living channels, ``(N + 1,)``.
        milliseconds: Median latency of a call, as if the dense network had been as fast as in the first sample.
        nodes: Profile of its optimised graph.
    """

    alive: Alive
    milliseconds: float
    nodes: tuple[NodeTime, ...]

    def scaled(self) -> tuple[NodeTime, ...]:
        """The nodes with times that add up to the latency of a call: a profile tells shares, and takes time itself.

        Where every node is too quick for the profile's clock, all have the same share.
        """
        times = np.array([node.milliseconds for node in self.nodes])
        shares = times / times.sum() if times.any() else np.full(times.size, 1 / max(times.size, 1))
        found = (self.milliseconds * shares).tolist()
        return tuple(replace(node, milliseconds=time) for node, time in zip(self.nodes, found, strict=True))


@dataclass
class LatencyTable:
    """Samples of one network on one runtime; the first one is the dense network.

    Attributes:
        about: What they hold for: network (its fingerprint's hash, where it is known), runtime, machine.
        samples: In the order in which they were measured.
        complete: Whether all that was asked for is measured, and measured again where it did not fit.
    """

    about: Mapping[str, Any]
    samples: list[Sample] = field(default_factory=list)
    complete: bool = False

    @property
    def dense_ms(self) -> float:
        """Median latency of the dense network, milliseconds. Raises: PlanError when nothing was measured."""
        if not self.samples:
            raise PlanError("latency table: nothing was measured; fill it with curlfx.measure_latency")
        return self.samples[0].milliseconds

    def model(self, traced: TracedModel, coupling: Coupling) -> LatencyModel:
        """Latency of the network for any keep set. Raises: PlanError when too little was measured."""
        self._check(traced, coupling)
        return LatencyModel.fit(self._quantities(traced, coupling), *self._measurements())

    def costs(self, traced: TracedModel, coupling: Coupling) -> CostModel:
        """A cost model that knows latency too. Raises: PlanError when too little was measured."""
        return CostModel(traced, coupling, latency=self.model(traced, coupling))

    def relative_errors(self, traced: TracedModel, coupling: Coupling) -> Floats:
        """Predicted over measured latency, minus 1, of every network, from the others; 0 for the dense one, ``(P,)``.

        Raises: PlanError when too little was measured.
        """
        self._check(traced, coupling)
        return LatencyModel.cross_validate(self._quantities(traced, coupling), *self._measurements())

    def prediction_error(self, traced: TracedModel, coupling: Coupling) -> PredictionError:
        """How far off latencies of measured networks are when they are predicted from the others. Raises: PlanError."""
        errors = np.abs(self.relative_errors(traced, coupling)[1:])
        return PredictionError(float(np.median(errors)), float(errors.max()), errors.size)

    def save(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all. Raises: OutputError."""
        write_bytes(path, json.dumps({"version": VERSION, **_json(self)}).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises: PlanError naming a file that is missing, damaged or of another version."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}, want {VERSION}")
            return cls(dict(found["about"]), [_sample(one) for one in found["samples"]], found["complete"] is True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{path}: no latency table, or a damaged one ({error}); measure it again") from error

    def _check(self, traced: TracedModel, coupling: Coupling) -> None:
        if len(self.samples) < FEWEST:
            raise PlanError(f"latency table: {len(self.samples)} networks were measured; want {FEWEST} or more")
        if self.samples[0].alive.shape != (coupling.total + 1,):
            raise PlanError(
                f"latency table: it is of a network with {self.samples[0].alive.size - 1} channels, this one has "
                f"{coupling.total}; measure it again"
            )
        if self.about.get("network") not in (None, Fingerprint.of(traced, coupling).sha256):
            raise PlanError("latency table: it is of another network (or of other input sizes); measure it again")

    def _quantities(self, traced: TracedModel, coupling: Coupling) -> Quantities:
        return Quantities.of(traced, coupling, block=int(self.about.get("block", 16)))

    def _measurements(self) -> tuple[list[Alive], list[NodeSamples]]:
        return [sample.alive for sample in self.samples], _aligned([sample.scaled() for sample in self.samples])


def sizes(node: NodeTime) -> tuple[float, float, float]:
    """What the time of a node may grow with: elements written, elements read, multiply-adds; 0 where it has none."""
    shapes = node.input_shapes
    written = float(np.prod(node.output_shape, dtype=float)) if node.output_shape is not None else 0.0
    read = float(np.prod(shapes[0], dtype=float)) if shapes else 0.0
    work = 0.0
    if node.op_type in CONVOLUTIONS and len(shapes) > 1 and node.output_shape is not None:
        work = float(np.prod(shapes[1], dtype=float)) * float(np.prod(node.output_shape[2:], dtype=float))
    elif node.op_type in PRODUCTS and written and node.output_shape:
        work = read * node.output_shape[-1]
    return written, read, work


def _aligned(networks: Sequence[Sequence[NodeTime]]) -> list[NodeSamples]:
    """The nodes of the first network with their times and sizes in all of them.

    Other networks mostly run the same nodes. One that the first does not have counts with the node behind it; one that
    only the first has takes no time there, so that in every network the times add up to its latency.
    """
    first = networks[0]
    times = np.zeros((len(first), len(networks)))
    grown = np.full((len(first), 3, len(networks)), np.nan)
    for column, nodes in enumerate(networks):
        matched = _matched(first, nodes)
        waiting = 0.0
        last: int | None = None
        for position, node in enumerate(nodes):
            own = matched.get(position)
            if own is None:
                waiting += node.milliseconds
                continue
            times[own, column] = node.milliseconds + waiting
            grown[own, :, column] = sizes(node)
            waiting, last = 0.0, own
        if last is not None:
            times[last, column] += waiting
    return [NodeSamples(node.name, node.op_type, grown[row], times[row]) for row, node in enumerate(first)]


def _matched(first: Sequence[NodeTime], other: Sequence[NodeTime]) -> dict[int, int]:
    """Positions in ``first`` by position in ``other``."""
    kinds = [[node.op_type for node in nodes] for nodes in (first, other)]
    if kinds[0] == kinds[1]:
        return {position: position for position in range(len(first))}
    ours, theirs = ([(node.op_type, node.name) for node in nodes] for nodes in (first, other))
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return {block.b + shift: block.a + shift for block in blocks for shift in range(block.size)}


def _json(table: LatencyTable) -> dict[str, Any]:
    return {
        "about": dict(table.about),
        "complete": table.complete,
        "samples": [
            {
                "channels": sample.alive.size - 1,
                "alive": base64.b64encode(np.packbits(sample.alive).tobytes()).decode(),
                "milliseconds": sample.milliseconds,
                "nodes": [
                    [node.name, node.op_type, node.provider, node.milliseconds, node.output_shape, node.input_shapes]
                    for node in sample.nodes
                ],
            }
            for sample in table.samples
        ],
    }


def _sample(found: Mapping[str, Any]) -> Sample:
    bits, count = np.frombuffer(base64.b64decode(found["alive"], validate=True), np.uint8), found["channels"] + 1
    if bits.size != -(-count // 8):
        raise ValueError(f"{8 * bits.size} bits for {count} channels")
    nodes = tuple(
        NodeTime(name, kind, provider, float(ms), None if out is None else tuple(out), tuple(map(tuple, shapes)))
        for name, kind, provider, ms, out, shapes in found["nodes"]
    )
    return Sample(np.unpackbits(bits, count=count).astype(bool), float(found["milliseconds"]), nodes)
