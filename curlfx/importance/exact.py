"""Exact scores: one channel closed at a time, and only what comes behind its gates is computed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curlfx.importance.gated import GatedNetwork, Tail
from curlfx.importance.section import Forward, Section, Values
from curlfx.importance.together import agree, memory, reference, vectorised

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Job:
    """Channels of one group that are closed one at a time.

    Attributes:
        tail: What runs again.
        section: Its calls.
        channels: Their numbers, from 1.
    """

    tail: Tail
    section: Section
    channels: Ints

    @property
    def work(self) -> int:
        """Of all its channels, for one image."""
        return self.tail.work * self.channels.size


class Watch(Protocol):
    """Who follows the work."""

    def worked(self, work: float) -> None:
        """So much was done, in units of `Tail.work`, for every image."""

    def finished(self, place: int) -> None:
        """The sums hold all channels of the job at this place."""


class Exact:
    """Exact divergences, of any number of images.

    Args:
        network: The gated network.
        channels: Numbers of the channels to close.

    Attributes:
        jobs: What is closed, in the order in which it is.
        work: Of all jobs for one image, see `Tail.work`.
    """

    def __init__(self, network: GatedNetwork, channels: Ints) -> None:
        self._network = network
        found = []
        for tail in network.tails:
            some = np.asarray(tail.group.channels)
            some = some[np.isin(some, channels)]
            if tail.section is not None and some.size:
                found.append(Job(tail, tail.section, some))
        self.jobs = sorted(found, key=lambda job: Forward.ready(network.intact, job.section))
        self.work = sum(job.work for job in self.jobs)
        self._alone: set[Section] = set()
        self._verified: set[Any] = set()

    def add(self, images: Tensor, sums: Floats, watch: Watch, skip: int = 0) -> None:
        """Add what each channel's absence costs on some images, job after job.

        Args:
            images: All run at once.
            sums: ``(N + 1,)`` sums over images, by channel number.
            watch: Is told of the progress.
            skip: So many jobs are in the sums already.

        Raises: DataError, ModelError as `reference`.
        """
        network, jobs = self._network, self.jobs[skip:]
        intact = reference(network, images)
        given = network.values(images, network.ones())
        forward = Forward(network.intact, [job.section for job in jobs], given)
        for place, job in enumerate(jobs, skip):
            values = forward.values(job.section) if network.pure else {}
            found = []
            for channels in np.array_split(job.channels, -(-job.channels.size // self._at_once(job, len(images)))):
                gates = network.ones().repeat(channels.size, 1)
                gates[torch.arange(channels.size), torch.from_numpy(channels)] = 0
                found.append(network.divergence.sums(self._logits(job.section, values, gates, images), intact))
                watch.worked(job.tail.work * channels.size)
            sums[job.channels] += torch.cat(found).cpu().numpy()
            if network.pure:
                forward.done(job.section)
            watch.finished(place)

    def _at_once(self, job: Job, images: int) -> int:
        """How many channels are closed side by side; a function of shapes alone, so that a run can be repeated."""
        if not self._network.pure:
            return 1
        each = self._network.per_image(job.section.bytes_at_once()) * images
        return max(1, int(memory(self._network) / max(each, 1)))

    def _logits(self, section: Section, values: Values, gates: Tensor, images: Tensor) -> Tensor:
        """Logits ``(K, N, …)`` for gates ``(K, N + 1)``; side by side where that gives the same."""
        if len(gates) > 1 and section not in self._alone:
            stacked = self._stacked(section, values, gates, images)
            if stacked is not None:
                return stacked
            self._alone.add(section)  # others go on: whether they stack may not depend on what a killed run had done
        return torch.stack([self._single(section, values, each, images) for each in gates])

    def _stacked(self, section: Section, values: Values, gates: Tensor, images: Tensor) -> Tensor | None:
        """All at once; None where the graph does not allow that. Ops that are new are checked on the last channel."""
        found = vectorised(lambda each: self._single(section, values, each, images), gates)
        targets = {node.target for node in section.nodes}
        if found is not None and not targets <= self._verified:
            if not agree(found[-1], self._single(section, values, gates[-1], images)):
                return None
            self._verified |= targets
        return found

    def _single(self, section: Section, values: Values, gates: Tensor, images: Tensor) -> Tensor:
        given = self._network.values(images, gates) if not self._network.pure else values
        logits: Tensor = section.run(given | {self._network.gates: gates})
        return logits
