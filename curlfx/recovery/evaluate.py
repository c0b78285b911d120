"""Accuracy of a network."""

from __future__ import annotations

import torch
from torch import nn

from curlfx.errors import CheckError, DataError
from curlfx.progress import Progress, StepEvent, StepTimer
from curlfx.recovery.batches import Loader, batch_count, batches
from curlfx.recovery.hardware import choose_device, evaluating
from curlfx.recovery.loss import check_labels, hits, logits_of
from curlfx.recovery.processes import ALONE, Processes


def evaluate(
    module: nn.Module,
    loader: Loader,
    *,
    device: str = "auto",
    stage: str = "evaluate",
    progress: Progress | None = None,
    group: Processes = ALONE,
) -> float:
    """Share of right answers in [0, 1], in eval mode and float32; the module's mode and place are restored.

    Args:
        group: Processes that all call this with the same network and images, and judge the batches in turn.

    Raises: DataError for an empty loader or labels that do not fit; ModelError for outputs without logits; CheckError
        when an answer is NaN.
    """
    place = choose_device(device)
    total = batch_count(loader)
    right, asked = torch.zeros((), dtype=torch.int64, device=place), 0
    unsure = torch.zeros_like(right)
    with evaluating(module, place), torch.inference_mode():
        timer = StepTimer(total)
        for step, (images, labels) in enumerate(batches(loader, 0), start=1):
            if step % group.count != group.rank:
                continue
            logits = logits_of(module(images.to(place, non_blocking=True)))
            check_labels(logits, labels)
            unsure = unsure + logits.isnan().any()
            found, answers = hits(logits, labels.to(place, non_blocking=True))
            right, asked = right + found, asked + answers
            if progress is not None:
                left = timer.seconds_left(step)
                progress.on_step(
                    StepEvent(stage, 0, step, max(step, total), accuracy=int(right) / asked, seconds_left=left)
                )
    sums = torch.stack([right, torch.tensor(asked, device=place), unsure])
    group.add_up([sums])
    found, answers, nans = sums.tolist()
    if answers == 0:
        raise DataError("no image to evaluate on; want at least one")
    if nans:
        raise CheckError(f"{stage}: the network answers NaN in {nans} of {total} batches; look at its weights")
    return float(found / answers)
