"""What exact and fast scores do alike: how much runs at once, and whether it may."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from curlfx.errors import DataError
from curlfx.importance.gated import GatedNetwork

NEAR_PROCESSOR = 64 << 20
ON_DEVICE = 1 << 30
COMPARED = 8


def memory(network: GatedNetwork) -> int:
    """Bytes that the values of one run should take; with less, late layers would read more weights than images."""
    return NEAR_PROCESSOR if network.device.type == "cpu" else ON_DEVICE


def parts(network: GatedNetwork, batch: Tensor, *, independent: bool) -> list[Tensor]:
    """A batch in parts that run at once, where its images do not influence each other and any number may run."""
    if network.fixed_batch is not None or not independent or not network.pure:
        return [batch]
    each = network.per_image(network.intact.bytes_at_once())
    return list(batch.split(max(1, int(memory(network) / max(each, 1)))))


def reference(network: GatedNetwork, images: Tensor) -> Tensor:
    """Logits of the intact network, checked. Raises: DataError, ModelError."""
    with fitting(images), matching(images):
        logits: Tensor = network.intact.run(network.values(images, network.ones()))
    network.divergence.check(logits, len(images))
    return logits


def are_independent(network: GatedNetwork, batch: Tensor) -> bool:
    """Whether an image gives the same logits alone as among others: no statistics over the batch, nothing random.

    Raises: DataError, ModelError as `reference`.
    """
    some = batch if network.fixed_batch is not None else batch[-COMPARED:]
    together = reference(network, some)
    try:
        alone = reference(network, some[-1:].expand(network.fixed_batch or 1, *some.shape[1:]))
    except DataError:
        return False
    return agree(alone[-1:], together[-1:])


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two results differ by no more than rounding."""
    largest = float(b.abs().max()) if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0, atol=max(largest, 1e-30) * torch.finfo(b.dtype).eps ** 0.5))


def vectorised(function: Callable[..., Tensor], *stacks: Tensor) -> Tensor | None:
    """A function of one gate row (and more) for many at once; None where an op of the graph cannot do that."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            result: Tensor = torch.vmap(function)(*stacks)
            return result
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError):  # no batching rule, a size that is written down, a Python number
        return None


@contextlib.contextmanager
def fitting(images: Tensor) -> Iterator[None]:
    """Raises: DataError in place of running out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as cause:
        raise DataError(
            f"data: {len(images)} images at once do not fit into the device's memory; give smaller batches"
        ) from cause


@contextlib.contextmanager
def matching(images: Tensor) -> Iterator[None]:
    """Raises: DataError in place of what ops say of images of a wrong shape or type."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as cause:
        raise DataError(
            f"data: images {tuple(images.shape)} of {images.dtype} do not fit the network: {cause}"
        ) from cause


@contextlib.contextmanager
def quiet(device: torch.device, *, gradient: bool = False) -> Iterator[None]:
    """No autocast, and no gradient unless asked: scores go down to 1e-8, which a shorter float cannot tell from 0."""
    with (
        torch.inference_mode(not gradient),
        torch.set_grad_enabled(gradient),
        torch.autocast(device.type, enabled=False),
    ):
        yield
