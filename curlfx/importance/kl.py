"""KL: how far the predictions move when one channel is closed."""

from __future__ import annotations

import math
import time
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curlfx.coupling import GroupId
from curlfx.errors import ModelError
from curlfx.importance.blend import anchors, band, calibrated, rank_correlation
from curlfx.importance.exact import Exact
from curlfx.importance.fast import Fast
from curlfx.importance.gated import GatedNetwork
from curlfx.importance.partial import Arrays, Partial, key_of
from curlfx.importance.request import Request
from curlfx.importance.scores import Values
from curlfx.importance.together import are_independent, parts, quiet
from curlfx.progress import StepEvent

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AFFORDABLE = 256
"""Forward passes over all images that exact scores may always cost."""
ROUND_OFF = 1e-15


def kl(request: Request) -> dict[GroupId, Values]:
    """As `kl_exact` where the whole of it costs little, or where it matters; as `kl_fast` elsewhere, on one scale.

    When exact scores cost more than `AFFORDABLE` forward passes, all channels get fast scores first. Those in the
    middle of that ranking, where the cut will be, and a few of every group get exact ones; the other fast scores are
    multiplied by what both kinds differ by in their group (see `curlfx.importance.blend`).

    Shapes, units, raises: as `kl_exact`. Networks that `kl_fast` refuses get exact scores throughout.
    """
    scoring = _Scoring(request, "kl")
    if not request.coupling.total:
        return {}
    every = np.arange(1, request.coupling.total + 1)
    if not scoring.can_be_fast or scoring.cost(every) <= AFFORDABLE:
        request.details["exact_channels"] = int(every.size)
        return scoring.by_group(scoring.exact(every))
    return scoring.by_group(_blended(request, scoring))


def _blended(request: Request, scoring: _Scoring) -> Floats:
    """Fast scores ``(N + 1,)``, exact ones where it matters."""
    groups, fast = request.coupling.groups, scoring.fast()
    spread = anchors(groups, fast, scoring.costs, AFFORDABLE / 2)
    exact = scoring.exact(spread, "anchors")
    near = band(calibrated(groups, fast, exact, spread), spread, scoring.costs, AFFORDABLE - scoring.cost(spread))
    exact = exact + scoring.exact(near, "band")
    known = np.union1d(spread, near)
    request.details["exact_channels"] = int(known.size)
    request.details["spearman_permille"] = round(1000 * rank_correlation(fast[spread], exact[spread]))
    return calibrated(groups, fast, exact, known)


def kl_exact(request: Request) -> dict[GroupId, Values]:
    """Mean over images of ``KL(softmax(logits with the channel closed) || softmax(logits))``, for every channel.

    One gate is closed at a time, in eval mode, with no gradient, and what comes behind it is computed again. The
    classes are axis 1 of the first output (of ``out`` or ``logits`` when there is one by that name); other heads have
    other divergences (`curlfx.importance.divergence`). A dense prediction counts as the mean over its pixels. A
    LayerNorm or GroupNorm averages over the channels that are left, as after slimming. Scores that are round-off
    become 0.

    Shapes: scores ``(width,)`` per group.
    Units: nats per image (of embeddings: 1 - cosine).
    Raises: DataError when the images do not fit the network; ModelError when the output is nothing that the divergence
        can look at.
    Source: CURL (arXiv:1911.08114), importance score; the masked network is the first argument, as in its code.
    """
    if not request.coupling.total:
        return {}
    scoring = _Scoring(request, "kl-exact")
    return scoring.by_group(scoring.exact(np.arange(1, request.coupling.total + 1)))


def kl_fast(request: Request) -> dict[GroupId, Values]:
    """As `kl_exact`, to first order in the logits: all channels from a few backward passes (`Fast`).

    Shapes, units, raises: as `kl_exact`; ModelError also when images influence each other, when the network is random
    in evaluation mode, or when it writes into a tensor that is read elsewhere.
    """
    if not request.coupling.total:
        return {}
    scoring = _Scoring(request, "kl-fast")
    scoring.require_fast()
    return scoring.by_group(scoring.fast())


class _Scoring:
    """One question on its way: the network, the images, what is on disk, and who wants to see the steps."""

    def __init__(self, request: Request, criterion: str) -> None:
        self._request, self._criterion = request, criterion

    @cached_property
    def network(self) -> GatedNetwork:
        """The gated network."""
        return GatedNetwork(self._request.traced, self._request.coupling, self._request.divergence)

    @cached_property
    def _batches(self) -> list[Tensor]:
        return list(self._request.proxy.batches(torch.device("cpu"), self.network.dtype))

    @cached_property
    def _independent(self) -> bool:
        first = self._batches[0]
        with quiet(self.network.device):
            return are_independent(self.network, self.network.on_device(first))

    @property
    def can_be_fast(self) -> bool:
        """Whether `kl_fast` takes the network."""
        return self.network.pure and self._independent

    def require_fast(self) -> None:
        """Raises: ModelError when `kl_fast` does not take the network."""
        if not self.network.pure:
            raise ModelError(
                f"importance '{self._criterion}': node '{self.network.impure}' writes into a tensor that may be read "
                "elsewhere; use importance 'kl-exact'"
            )
        if not self._independent:
            raise ModelError(
                f"importance '{self._criterion}': an image gives other logits alone than among others (statistics over "
                "the batch, or random numbers, in evaluation mode); use importance 'kl-exact'"
            )

    @cached_property
    def _partial(self) -> Partial:
        request, path = self._request, self._request.store
        words = (self._criterion, self.network.divergence.name, request.seed)
        return Partial(path, "" if path is None else key_of(request.traced, request.coupling, self._batches, *words))

    @cached_property
    def _saved(self) -> Arrays:
        return self._partial.read()

    @cached_property
    def costs(self) -> Floats:
        """Of closing each channel ``(N + 1,)``, in forward passes of the whole network."""
        found = np.zeros(self.network.total + 1)
        for tail in self.network.tails:
            found[tail.group.channels] = tail.work / self.network.work
        return found

    def cost(self, channels: Ints) -> float:
        """Of closing some channels, likewise."""
        return float(self.costs[channels].sum())

    def fast(self) -> Floats:
        """Fast scores ``(N + 1,)``."""
        saved = self._saved
        if "fast" not in saved:
            sums = np.zeros(self.network.total + 1)
            fast = Fast(self.network, self._request.seed, self._images)
            with quiet(self.network.device, gradient=True):
                todo = [part for batch in self._batches for part in fast.parts(batch)]
                steps = _Steps(self._request, len(todo))
                for part in todo:
                    fast.add(self.network.on_device(part), sums)
                    steps.worked(1)
            saved["fast"] = self._clean(sums)
            self._partial.write(saved, now=True)
        return saved["fast"]

    def exact(self, channels: Ints, phase: str = "exact") -> Floats:
        """Exact scores ``(N + 1,)``, 0 for other channels; ``phase`` names them on disk."""
        network, saved = self.network, self._saved
        exact = Exact(network, channels)
        sums = saved.setdefault(phase, np.zeros(network.total + 1))
        at = saved.setdefault(f"{phase} at", np.zeros(2, np.int64))
        with quiet(network.device):
            todo = [part for batch in self._batches for part in parts(network, batch, independent=self._independent)]
            steps = _Steps(self._request, exact.work / network.work)
            for number, part in enumerate(todo):
                skip = len(exact.jobs) if number < at[0] else int(at[1]) if number == at[0] else 0
                share = len(part) / self._images / network.work
                steps.skip(share * sum(job.work for job in exact.jobs[:skip]))
                if skip < len(exact.jobs):
                    exact.add(network.on_device(part), sums, _Watch(self, steps, share, at, number), skip)
        return self._clean(sums)

    def _clean(self, sums: Floats) -> Floats:
        """Means over images; what logits of this type cannot tell from 0 is 0."""
        means = sums / self._images
        means[means < max(ROUND_OFF, torch.finfo(self.network.dtype).eps ** 2)] = 0
        return means

    def save(self) -> None:
        """Put on disk what there is, unless that was done a moment ago."""
        self._partial.write(self._saved)

    @property
    def _images(self) -> int:
        return sum(map(len, self._batches))

    def by_group(self, values: Floats) -> dict[GroupId, Values]:
        """The values ``(N + 1,)`` of channels as a criterion gives them."""
        return {group.id: values[group.channels] for group in self._request.coupling.groups}


class _Steps:
    """Tells of the work; the unit is a forward pass over all images (of fast scores: a part of the images)."""

    def __init__(self, request: Request, total: float) -> None:
        self._progress, self._total = request.progress, max(1, math.ceil(total - 1e-6))
        self._done, self._told, self._skipped = 0.0, 0, 0.0
        self._timer = time.perf_counter()
        self._work = total

    def skip(self, amount: float) -> None:
        """So much was done by an earlier process, in no time."""
        self._done += amount
        self._skipped += amount

    def worked(self, amount: float) -> None:
        """So much is done."""
        self._done += amount
        whole = int(self._done / max(self._work, 1e-300) * self._total + 1e-6)
        if self._progress is not None and whole > self._told:
            self._told = whole
            each = (time.perf_counter() - self._timer) / (self._done - self._skipped)
            left = each * max(self._work - self._done, 0.0)
            self._progress.on_step(StepEvent("score", 0, whole, self._total, seconds_left=left))


class _Watch:
    """Passes on what was worked, and where the sums stand."""

    def __init__(self, scoring: _Scoring, steps: _Steps, share: float, at: Ints, part: int) -> None:
        self._scoring, self._steps, self._share, self._at, self._part = scoring, steps, share, at, part

    def worked(self, work: float) -> None:
        """As `curlfx.importance.exact.Watch`; ``work`` is for one image."""
        self._steps.worked(work * self._share)

    def finished(self, place: int) -> None:
        """As `curlfx.importance.exact.Watch`."""
        self._at[:] = self._part, place + 1
        self._scoring.save()
