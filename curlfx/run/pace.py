"""How fast a network computes here: a few passes are timed, on a copy."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curlfx.recovery.loss import logits_of

MACS_PER_PASS = 2_000_000_000
"""So many multiply-adds are timed at once, a fraction of a second on a small machine, unless one image has more."""
REPEATS = 3
SMALLEST_BATCH = 2


@dataclass(frozen=True)
class Pace:
    """Seconds for one image, in a batch.

    Attributes:
        forward: In eval mode.
        step: In a training: forwards, backwards.
        images: In the batch that was timed.
    """

    forward: float
    step: float
    images: int


def measure_pace(network: nn.Module, example: Tensor, macs: int, batch: int, device: torch.device) -> Pace:
    """Time a copy of ``network`` on ``batch`` images, or on as many as take a moment.

    Args:
        example: Images to repeat, ``(N, C, H, W)``.
        macs: Multiply-adds for one image.
        batch: Of the training that is meant.
    """
    count = max(SMALLEST_BATCH, min(batch, MACS_PER_PASS // max(macs, 1)))
    copied = copy.deepcopy(network).to(device)
    images = torch.cat([example] * -(-count // len(example)))[:count].to(device)

    def forward() -> None:
        with torch.inference_mode():
            copied(images)

    def step() -> None:
        copied.zero_grad(set_to_none=True)
        logits_of(copied(images)).float().square().mean().backward()

    copied.eval()
    seen = _median(forward, device)
    copied.train()
    return Pace(seen / count, _median(step, device) / count, count)


def _median(work: Callable[[], None], device: torch.device) -> float:
    """Median seconds of `REPEATS` calls, after one that does not count."""
    taken = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
