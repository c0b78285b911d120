"""KL: how far the predictions move when one channel is closed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curlfx.coupling import GroupId
from curlfx.errors import DataError, ModelError
from curlfx.importance.request import Request
from curlfx.importance.scores import Values
from curlfx.passes.gate import GATES, Gate
from curlfx.passes.pipeline import run
from curlfx.progress import StepEvent, StepTimer


def kl(request: Request) -> dict[GroupId, Values]:
    """Mean over images of ``KL(softmax(logits with the channel closed) || softmax(logits))``, for every channel.

    One gate is closed at a time, in eval mode, with no gradient; the classes are axis 1 of the first output (of
    ``out`` when there is one by that name), and a dense prediction counts as the mean over its pixels. A LayerNorm or
    GroupNorm averages over the channels that are left, as after slimming. Work: ``channels + 1`` forward passes over
    the images. Scores below 0, which are round-off, become 0.

    Shapes: scores ``(width,)`` per group.
    Units: nats per image.
    Raises: DataError when the images do not fit the network; ModelError when the output is no distribution over
        classes.
    Source: CURL (arXiv:1911.08114), importance score; the masked network is the first argument, as in its code.
    """
    if not request.coupling.total:
        return {}
    channels = np.concatenate([np.asarray(group.channels) for group in request.coupling.groups])
    averaged = any(group.statistics_change for group in request.coupling.groups)
    gate = Gate(request.coupling, statistics="kept" if averaged else "all")
    gated, _ = run(request.traced, [gate])  # weights of its own: a network may write into its buffers
    module = gated.module.eval()
    gates = module.get_buffer(GATES)
    device, dtype = gates.device, gates.dtype
    sums = torch.zeros(len(channels), dtype=torch.float64, device=device)
    images = 0
    with _quiet(device):
        steps = _Steps(request, len(channels))
        for batch in request.proxy.batches(device, dtype):
            images += len(batch)
            reference = _log_probabilities(_forward(module, batch))
            _close_each(module, gates, batch, (reference, channels.tolist(), sums), steps)
    values = (sums / max(images, 1)).clamp_min(0).cpu().numpy()
    ends = np.cumsum([group.width for group in request.coupling.groups])[:-1]
    return {group.id: part for group, part in zip(request.coupling.groups, np.split(values, ends), strict=True)}


class _Steps:
    """Tells of every closed channel; the number of batches is known only when the data says so."""

    def __init__(self, request: Request, channels: int) -> None:
        self._progress, self._channels = request.progress, channels
        self._total = channels * (request.proxy.count or 1)
        self._timer = StepTimer(self._total)
        self._done = 0

    def next(self) -> None:
        self._done += 1
        if self._progress is not None:
            total = max(self._total, -(-self._done // self._channels) * self._channels)
            left = self._timer.seconds_left(self._done) if total == self._total else None
            self._progress.on_step(StepEvent("score", 0, self._done, total, seconds_left=left))


def _close_each(
    module: nn.Module, gates: Tensor, batch: Tensor, work: tuple[Tensor, list[int], Tensor], steps: _Steps
) -> None:
    """Add to ``sums`` what each channel's absence costs on one batch; the gates are as before at the end."""
    reference, channels, sums = work
    for position, channel in enumerate(channels):
        gates[channel] = 0
        try:
            masked = _log_probabilities(_logits(module(batch)))
        finally:
            gates[channel] = 1
        sums[position] += _divergence(masked, reference)
        steps.next()


def _divergence(masked: Tensor, reference: Tensor) -> Tensor:
    """Sum over images of KL(masked || reference), the mean over pixels where there are any.

    Shapes: log-probabilities ``(N, C, *S)``; result ``()`` in float64.
    """
    per_image = (masked.exp() * (masked - reference)).sum(1)
    return per_image.reshape(len(per_image), -1).mean(1).sum(dtype=torch.float64)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over axis 1 in float32 or better."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits.log_softmax(1)


def _forward(module: nn.Module, batch: Tensor) -> Tensor:
    """Logits of the intact network, checked. Raises: DataError, ModelError."""
    try:
        logits = _logits(module(batch))
    except torch.OutOfMemoryError as cause:
        raise DataError(
            f"data: {len(batch)} images at once do not fit into the device's memory; give smaller batches"
        ) from cause
    except RuntimeError as cause:
        raise DataError(
            f"data: images {tuple(batch.shape)} of {batch.dtype} do not fit the network: {cause}"
        ) from cause
    if logits.ndim < 2 or len(logits) != len(batch) or logits.shape[1] < 2:
        raise ModelError(
            f"importance 'kl': the output is {tuple(logits.shape)} for {len(batch)} images: want (images, classes, …) "
            "with at least 2 classes; use importance 'magnitude' for other networks"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("importance 'kl': the network's own output has NaN or infinite values; check its weights")
    return logits


def _logits(output: Any) -> Tensor:
    """The first tensor of a structured output, ``out`` before others in a mapping. Raises: ModelError."""
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping) and output:
            output = output["out"] if "out" in output else next(iter(output.values()))
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        else:
            raise ModelError(f"importance 'kl': the network returns a {type(output).__name__}: want logits in a tensor")
    return output


@contextlib.contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """No gradient and no autocast: scores go down to 1e-8, which a shorter float cannot tell from 0."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield
