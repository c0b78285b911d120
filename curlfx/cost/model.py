"""The price of a network after any keep set, without building it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from torch import nn

from curlfx.cost.contraction import Contraction, contractions, per_image
from curlfx.cost.counting import Alive, Box, Counts, Tally
from curlfx.cost.latency import LatencyModel
from curlfx.cost.macs import batch_size, tensors_read
from curlfx.cost.operands import box_of
from curlfx.coupling import Coupling, GroupId
from curlfx.errors import KeepError
from curlfx.graph import TracedModel


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        macs: Multiply-adds for one image (convolution, linear, matrix products).
        params: Elements of the parameters that the graph reads.
        size_bytes: Bytes of the floating-point parameters, buffers and constants that the graph reads; tables of whole
            numbers (positions, channel orders) are left out.
        padded_macs: Multiply-adds for one image after every channel axis is rounded up to the block.
        latency_ms: Milliseconds of one call, predicted from a latency table; None without one.
    """

    macs: int
    params: int
    size_bytes: int
    padded_macs: int
    latency_ms: float | None = None

    def as_dict(self) -> dict[str, float]:
        """The numbers by name; latency only where it is known."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: number for name, number in found.items() if number is not None}


@dataclass(frozen=True)
class Saving:
    """What one channel less saves; the mean over the blocks where a group loses one channel of every block at once.

    Attributes:
        macs: Multiply-adds for one image.
        params: Parameters.
    """

    macs: float
    params: float


class CostModel:
    """Prices every keep set of one network, exactly as the slimmed network would be counted.

    One sparse product over channels, then products of counts: a fraction of a millisecond for most networks.

    Args:
        traced: The dense network, shapes propagated.
        coupling: Its channels.
        block: Vector length for *padded MACs*: kept input and output channels of a layer (of each of its groups, of
            all groups together when it is depthwise) and the labelled axes of a matrix product are rounded up to it,
            but for fewer than 4 input channels, which onnxruntime reads as they are.
        latency: What predicts milliseconds, if they are asked for; of this network and coupling.
    """

    def __init__(
        self, traced: TracedModel, coupling: Coupling, *, block: int = 16, latency: LatencyModel | None = None
    ) -> None:
        self.block, self.latency = block, latency
        self._coupling = coupling
        batch, scaled = batch_size(traced), per_image(traced.graph)
        tally = Tally(len(coupling.cells.channels) - 1, block)
        nodes: list[str] = []
        layers: list[str] = []
        divisors: list[int] = []
        for node in traced.graph.nodes:
            for contraction in contractions(node, coupling.rules):
                tally.add(box_of(contraction, coupling))
                nodes.append(node.name)
                layers.append(_layer(contraction) or node.name)
                divisors.append(batch if node in scaled else 1)
        tensors = tensors_read(traced)
        for name, tensor in tensors.items():
            arrays = tuple(np.asarray(array, np.int64) for array in coupling.parameter_labels(name))
            tally.add(Box(tuple(tensor.shape), arrays, channels=()), merge=True)
        self._prices = tally.finish()
        self._nodes, self._layers = tuple(nodes), tuple(layers)
        self._divisors = np.array(divisors, np.int64)
        self._tensors = tuple(tensors)
        sizes = [tensor.element_size() * tensor.is_floating_point() for tensor in tensors.values()]
        self._bytes = np.array(sizes, np.int64)
        self._trainable = np.array([isinstance(tensor, nn.Parameter) for tensor in tensors.values()], bool)

    @cached_property
    def dense(self) -> Cost:
        """The cost with every channel alive."""
        return self.evaluate(self.everything())

    def everything(self) -> Alive:
        """The vector of living channels ``(N + 1,)`` of the dense network."""
        return np.ones(self._coupling.total + 1, bool)

    def evaluate(self, alive: Alive) -> Cost:
        """The cost when only the channels in ``alive`` are left.

        Shapes: alive ``(N + 1,)``, as `Coupling.alive` makes it; entry 0 is True.
        Raises: KeepError when the vector does not fit the coupling.
        """
        counts = self._counts(alive)
        points = self._prices.points(counts)
        macs, sizes = self._macs(points), points[len(self._nodes) :]
        return Cost(
            macs=int(macs.sum()),
            params=int(sizes[self._trainable].sum()),
            size_bytes=int((sizes * self._bytes).sum()),
            padded_macs=int(self._macs(self._prices.padded_points(counts)).sum()),
            latency_ms=None if self.latency is None else self.latency.predict(alive),
        )

    def node_macs(self, alive: Alive) -> dict[str, int]:
        """Multiply-adds for one image by FX node. Raises: KeepError."""
        return _summed(self._nodes, self._macs(self._prices.points(self._counts(alive))))

    def layer_macs(self, alive: Alive) -> dict[str, int]:
        """Multiply-adds for one image by layer: the name of the weight, or of the node where there is none.

        Raises: KeepError.
        """
        return _summed(self._layers, self._macs(self._prices.points(self._counts(alive))))

    def tensor_params(self, alive: Alive) -> dict[str, int]:
        """Elements left of every parameter. Raises: KeepError."""
        sizes = self._prices.points(self._counts(alive))[len(self._nodes) :]
        names = np.array(self._tensors, dtype=object)[self._trainable]
        return _summed(names.tolist(), sizes[self._trainable])

    def per_channel(self, group: GroupId) -> Saving:
        """What one channel less of ``group`` saves in the dense network (the first of every block is taken away).

        Raises: KeyError when there is no such group.
        """
        found = self._coupling.group(group)
        blocks = np.zeros(found.width, np.int64) if found.blocks is None else np.asarray(found.blocks)
        _, first = np.unique(blocks, return_index=True)
        alive = self.everything()
        alive[np.asarray(found.channels)[first]] = False
        left = self.evaluate(alive)
        return Saving((self.dense.macs - left.macs) / len(first), (self.dense.params - left.params) / len(first))

    def _counts(self, alive: Alive) -> Counts:
        if alive.shape != (self._coupling.total + 1,) or alive.dtype != np.bool_ or not alive[0]:
            wanted = f"want ({self._coupling.total + 1},) of bool with entry 0 True"
            raise KeepError(f"alive: found {alive.shape} of {alive.dtype}: {wanted}, as Coupling.alive returns")
        return self._prices.counts(self._coupling.cells.alive(alive))

    def _macs(self, points: Counts) -> Counts:
        result: Counts = points[: len(self._nodes)] // self._divisors
        return result


def _summed(names: Iterable[str], numbers: Counts) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in zip(names, numbers.tolist(), strict=True):
        found[name] = found.get(name, 0) + number
    return found


def _layer(contraction: Contraction) -> str | None:
    """Name of the parameter that a contraction multiplies with, if any."""
    reads = (operand.node for operand in contraction.operands)
    return next((str(node.target) for node in reads if node.op == "get_attr"), None)
