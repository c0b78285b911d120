"""What stands for the accuracy of a genome while thousands of them are compared: lower is better."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curlfx.errors import ConfigError, DataError
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.recovery.batches import Batch, Loader, batch_count, batches, seeded
from curlfx.recovery.evaluate import evaluate
from curlfx.recovery.recalibrate import recalibrate
from curlfx.search.digest import digest
from curlfx.search.space import Genome
from curlfx.search.supernet import Statistics, Supernet

Part = tuple[int, ...]
"""What is measured at once: a stage and the widths that it depends on, or a whole genome."""
ProxyName = Literal["stages", "accuracy"]
MEMORY = 2 << 30
"""Bytes up to which what enters and leaves every stage of the whole network is kept."""


@dataclass(frozen=True)
class ProxyData:
    """Images to judge by.

    Attributes:
        calibration: Training images on which batch normalisations are measured, as they look in training.
        held_out: Images and labels that no training saw.
    """

    calibration: tuple[Tensor, ...]
    held_out: tuple[Batch, ...]

    def __post_init__(self) -> None:
        """Raises: DataError when there are none of either."""
        if not self.calibration or not self.held_out:
            raise DataError("a proxy wants at least one batch of 2 or more training images, and one of held-out images")

    @classmethod
    def of(cls, train: Loader, held_out: Loader, *, calibration_batches: int = 20) -> Self:
        """The first batches of the training images, over as many epochs as it takes, and all held-out images.

        The same whenever it is asked for, also from a loader that shuffles by torch's global random numbers. Batches of
        one image are left out: their variance may be undefined.
        Raises: DataError when there are no batches of 2 or more training images.
        """
        batch_count(train)
        with seeded(0, 0, torch.device("cpu")):
            judged = tuple(batches(held_out, 0))
        return cls(tuple(_drawn(train, calibration_batches)), judged)

    def to(self, device: torch.device) -> ProxyData:
        """The same on a device."""
        moved: tuple[tuple[Tensor, ...], tuple[Batch, ...]] = pytree.tree_map_only(
            Tensor, lambda tensor: tensor.to(device), (self.calibration, self.held_out)
        )
        return ProxyData(*moved)


def _drawn(loader: Loader, count: int) -> list[Tensor]:
    """Images of the first ``count`` batches of 2 or more; every epoch from random numbers of its own."""
    found: list[Tensor] = []
    for epoch in itertools.count():
        with seeded(0, epoch, torch.device("cpu")):
            usable = (images for images, _ in batches(loader, epoch) if len(images) > 1)
            more = list(itertools.islice(usable, count - len(found)))
        if not more:
            break
        found += more
    return found


class Proxy(Protocol):
    """A number per genome, the sum of what its parts are measured at; lower is better."""

    def parts(self, genome: Genome) -> tuple[Part, ...]:
        """What has to be measured. Genomes share parts."""

    def measure(self, part: Part) -> float:
        """The number of one part; depends on nothing else that was measured."""


class StageProxy:
    """The losses of all stages on held-out images: the whole network supervises the search as it did the training.

    Every stage gets what the whole network gives it, its batch normalisations measured on training images for the very
    widths that are judged. A stage with the same widths is measured once.

    Args:
        supernet: Trained.
        data: Images to judge by.
        memory: Bytes for what enters every stage; where that does not do it is computed again every time.
    Source: stage-wise pruning (arXiv:2011.04908); per-stage ranking as in DNA (arXiv:1911.13053).
    """

    def __init__(self, supernet: Supernet, data: ProxyData, *, memory: int = MEMORY) -> None:
        self._net, self._data = supernet, data.to(supernet.device)
        self._full = supernet.gates(supernet.space.full)
        self._statistics: list[Statistics] = []
        held_out = [images for images, _ in self._data.held_out]
        self._calibration = _Borders(self, self._data.calibration, memory // 2)
        self._held_out = _Borders(self, held_out, memory // 2)

    def parts(self, genome: Genome) -> tuple[Part, ...]:
        """One per stage: its number, and the widths of its genes."""
        return tuple((number, *(genome[gene] for gene in stage.genes)) for number, stage in enumerate(self._net.stages))

    def measure(self, part: Part) -> float:
        """Mean loss of a stage over the held-out images."""
        number, *widths = part
        genome = list(self._net.space.full)
        for gene, width in zip(self._net.stages[number].genes, widths, strict=True):
            genome[gene] = width
        gates = self._net.gates(tuple(genome))
        statistics = self._calibrated(number, gates)
        total, count = 0.0, 0
        with torch.no_grad():
            incoming_and_target = zip(self._held_out.values(number), self._held_out.values(number + 1), strict=True)
            for incoming, target in incoming_and_target:
                output = self._net.forward(number, incoming, gates, "measured", statistics)
                total += float(self._net.loss(number, output, target, gates)) * len(incoming)
                count += len(incoming)
        return total / count

    def whole(self, stage: int, incoming: Tensor) -> Tensor:
        """What leaves a stage of the whole network."""
        while len(self._statistics) <= stage:
            self._statistics.append(self._calibrated(len(self._statistics), self._full))
        with torch.no_grad():
            return self._net.forward(stage, incoming, self._full, "measured", self._statistics[stage])

    def _calibrated(self, stage: int, gates: Tensor) -> Statistics:
        """Mean over the batches of batch mean and unbiased batch variance, as `recalibrate` takes it."""
        held = self._net.empty_statistics(stage)
        sums = {name: torch.zeros_like(tensor).double() for name, tensor in held.items()}
        with torch.no_grad():
            for incoming in self._calibration.values(stage):
                self._net.forward(stage, incoming, gates, "batch", held)
                for name, tensor in held.items():
                    sums[name] += tensor
        count = len(self._data.calibration)
        return {name: (total / count).to(held[name].dtype) for name, total in sums.items()}


class _Borders:
    """What enters every stage of the whole network, kept as far as there is memory."""

    def __init__(self, proxy: StageProxy, images: Sequence[Tensor], memory: int) -> None:
        self._proxy, self._left = proxy, memory
        self._kept: dict[int, list[Tensor]] = {0: list(images)}

    def values(self, stage: int) -> Iterable[Tensor]:
        """What enters stage ``stage``, batch by batch; of the number after the last: the logits."""
        if stage in self._kept:
            return self._kept[stage]
        computed = (self._proxy.whole(stage - 1, value) for value in self.values(stage - 1))
        first = next(computed)
        size = first.numel() * first.element_size() * len(self._kept[0])
        if size > self._left:
            return itertools.chain([first], computed)
        self._left -= size
        self._kept[stage] = [first, *computed]
        return self._kept[stage]


class AccuracyProxy:
    """Share of wrong answers of the assembled, physically slim network, its batch normalisations measured afresh.

    Args:
        supernet: Trained.
        data: Images to judge by.
    Source: single-path one-shot search (arXiv:1904.00420), section 3.4.
    """

    def __init__(self, supernet: Supernet, data: ProxyData) -> None:
        self._net, self._data = supernet, data.to(supernet.device)

    def parts(self, genome: Genome) -> tuple[Part, ...]:
        """The genome itself."""
        return (genome,)

    def measure(self, part: Part) -> float:
        """Error rate on the held-out images, in [0, 1]."""
        space, device = self._net.space, str(self._net.device)
        network = run(self._net.network, [Slim(space.coupling, space.keep(part))])[0].module
        labels = self._data.held_out[0][1]
        recalibrate(network, ((images, labels) for images in self._data.calibration), device=device)
        return 1.0 - evaluate(network, list(self._data.held_out), device=device)


def make_proxy(name: ProxyName, supernet: Supernet, data: ProxyData) -> Proxy:
    """The proxy of a name. Raises: ConfigError."""
    if name == "stages":
        return StageProxy(supernet, data)
    if name == "accuracy":
        return AccuracyProxy(supernet, data)
    raise ConfigError(f"proxy = {name!r}: want 'stages' or 'accuracy'")


def question(name: ProxyName, supernet: Supernet, data: ProxyData) -> str:
    """A hash of all that measured numbers depend on: weights, images, cuts, widths and which channels they keep."""
    space, stages = supernet.space, [stage.end for stage in supernet.stages]
    asked = json.dumps([name, stages, space.grids, space.units.ids]).encode()
    statistics = set(supernet.empty_statistics())  # measured afresh for every genome
    state = {key: one for key, one in supernet.network.module.state_dict().items() if key not in statistics}
    images = (*data.calibration, *(one for batch in data.held_out for one in batch))
    return digest((*state.values(), *images), asked, space.order)
