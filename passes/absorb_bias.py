"""Absorb bias: what removed channels would still emit goes into the biases of the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.fx import Node

from curlfx.coupling import Coupling, GroupId
from curlfx.errors import UsageError
from curlfx.graph.modes import mode_of
from curlfx.graph.traced import TracedModel
from curlfx.ops.call import named_arguments
from curlfx.passes.base import Pass
from curlfx.passes.emitted import Read, reads
from curlfx.passes.fold_batch_norm import count_readers

Borders = Literal["exact", "mean"]
_EVEN = 1e-9
"""Largest spread over positions, as a share of the largest shift, that is round-off."""


@dataclass(frozen=True)
class Refusal:
    """A reader that keeps its bias, wholly or in part.

    Attributes:
        reader: Name of the node.
        source: Name of the input whose channels go.
        channels: Removed channels whose constant is lost.
        reason: In words.
    """

    reader: str
    source: str
    channels: int
    reason: str

    def __str__(self) -> str:
        return f"node '{self.reader}' loses what {self.channels} channels of '{self.source}' emit: {self.reason}"


@dataclass(frozen=True, eq=False)
class Absorption:
    """What removing channels asks of the biases of those who read them.

    Attributes:
        shifts: What is added to a parameter or buffer, by name, in float64.
        refused: What cannot be moved, and why.
    """

    shifts: Mapping[str, Tensor]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """Give the readers of removed channels, in their biases, what these channels would still emit; before `Slim`.

    A channel whose scale (or whose weights) are 0 emits a constant, and is then removed without changing the output. Of
    other channels the part that depends on the images is lost, as without this pass. The constant goes into the bias of
    the convolution or linear layer that reads it, or, where it has none, into the running mean of the batch
    normalisation behind it. No parameter is added, no shape changes.

    Attributes:
        coupling: Coupling of the very network the pass runs on.
        keep: As for `Slim`.
        borders: ``"exact"``: only where the shift is the same at every position; zero padding makes it differ at the
            border. ``"mean"``: its mean over the positions otherwise.
    """

    name: ClassVar[str] = "absorb-bias"
    coupling: Coupling
    keep: Mapping[GroupId, Sequence[int]]
    borders: Borders = "exact"

    def requires(self, graph: TracedModel) -> None:
        """Raises: KeepError for a wrong choice, InvariantError for the coupling of another network, UsageError."""
        self.coupling.alive(self.keep)
        self.coupling.check(graph)
        if graph.module.training:
            raise UsageError(f"{self.name}: the network is in training mode; call module.eval() first")
        if any(tensor.is_meta for tensor in graph.tensors().values()):
            raise UsageError(f"{self.name}: the network has no weights (device meta); load some first")

    def rewrite(self, graph: TracedModel) -> bool:
        """Shift biases and running means. Returns whether any was shifted."""
        found = absorption(graph, self.coupling, self.keep, self.borders)
        changed = {}
        for name, shift in found.shifts.items():
            old = graph.parameter(name).detach()
            changed[name] = (old.double() + shift).to(old.dtype)
        graph.set_parameters(changed)
        return bool(changed)


def absorption(
    traced: TracedModel, coupling: Coupling, keep: Mapping[GroupId, Sequence[int]], borders: Borders = "exact"
) -> Absorption:
    """What `AbsorbBias` does to a network in eval mode, and what it cannot do. Arguments: as there.

    Source: constant propagation of pruned channels as in Simplify (Bragagnolo and Barbano, SoftwareX 2022); here by
        running the ops between producer and reader.
    """
    alive = coupling.alive(keep)
    if bool(alive.all()):
        return Absorption({}, ())
    nodes = {node.name: node for node in traced.graph.nodes}
    places = _Places(traced)
    shifts: dict[str, Tensor] = {}
    refused: list[Refusal] = []
    for read in reads(traced, coupling, alive):
        if read.varying:
            refused.append(Refusal(read.reader, read.source, read.varying, "it depends on the images"))
        if not read.constant:
            continue
        shift, reason = _shift(read, nodes[read.reader], borders)
        place, sign = places.of(nodes[read.reader])
        if shift is None:
            refused.append(Refusal(read.reader, read.source, read.constant, reason))
        elif place is None:
            refused.append(Refusal(read.reader, read.source, read.constant, _NO_PLACE))
        elif bool(shift.any()):
            shifts[place] = shifts[place] + sign * shift if place in shifts else sign * shift
    return Absorption(shifts, tuple(refused))


_NO_PLACE = "it has no bias of its own, and no batch normalisation in inference mode alone reads it"


def _shift(read: Read, node: Node, borders: Borders) -> tuple[Tensor | None, str]:
    """The shift ``(K,)`` of every output channel, or why there is none."""
    made = read.made
    if made is None:
        return None, "it is no convolution or linear layer with a weight"
    channels = made.ndim - 1 if _op(node) == "linear" else 1
    rows = made.movedim(channels, 0).flatten(1)
    mean = rows.mean(1)
    spread = rows.amax(1) - rows.amin(1)
    if borders == "exact" and bool((spread > _EVEN * rows.abs().max()).any()):
        return None, "it differs between positions, as by zero padding; borders='mean' takes the mean"
    return mean, ""


class _Places:
    """Where a layer takes a shift: its bias, or the running mean behind it."""

    def __init__(self, traced: TracedModel) -> None:
        self._traced = traced
        self._readers = count_readers(traced)

    def of(self, layer: Node) -> tuple[str | None, int]:
        """Name of a parameter or buffer that this layer alone depends on, and the sign of the shift."""
        bias = named_arguments(layer).get("bias")
        if bias is not None:
            return self._own(bias), 1
        users = list(layer.users)
        along_channels = _op(layer) != "linear" or layer.meta["val"].ndim == 2
        if along_channels and len(users) == 1 and _op(users[0]) == "batch_norm" and not mode_of(users[0]):
            return self._own(named_arguments(users[0])["running_mean"]), -1
        return None, 0

    def _own(self, node: object) -> str | None:
        if not isinstance(node, Node) or node.op != "get_attr":
            return None
        name = str(node.target)
        return name if self._readers[id(self._traced.parameter(name))] == 1 else None


def _op(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")
