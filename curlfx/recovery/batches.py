"""What a loader of images and labels must offer, and how an epoch is drawn from one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from curlfx.errors import DataError

Batch = tuple[Tensor, Tensor]


class IndexedBatch(NamedTuple):
    """A batch that says which images of the training set it holds.

    Attributes:
        images: ``(B, C, H, W)``.
        labels: ``(B,)`` class numbers, or ``(B, K)`` probabilities.
        positions: ``(B,)`` int64 in ``[0, N)``, the same for the same image in every epoch.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor


@runtime_checkable
class EpochLoader(Protocol):
    """Batches that are a function of the epoch number: the property that makes a resumed training bit-equal.

    Shapes: images ``(B, C, H, W)`` (any shape the network takes), labels ``(B,)`` class numbers, or ``(B, K)``
    probabilities; where labels are refined, the images' positions ``(B,)`` as a third.
    """

    def epoch(self, number: int) -> Iterable[Batch | IndexedBatch]:
        """Batches of epoch ``number``, from 0."""

    def __len__(self) -> int:
        """Batches in an epoch."""


class Batches(Protocol):
    """Anything that can be iterated over again and again, such as a `torch.utils.data.DataLoader` or a list."""

    def __iter__(self) -> Iterator[Any]:
        """Batches of one pass."""

    def __len__(self) -> int:
        """Batches in one pass."""


Loader = EpochLoader | Batches


def batch_count(loader: Loader) -> int:
    """Batches in an epoch. Raises: DataError when there are none or the number is unknown."""
    try:
        count = len(loader)
    except TypeError as error:
        raise DataError("the loader has no length; want a data set of known size") from error
    if count == 0:
        raise DataError("the loader yields no batch; want at least one image per batch asked for")
    return count


def batches(loader: Loader, epoch: int) -> Iterator[Batch]:
    """Batches of epoch ``epoch`` (from 0) of either kind of loader, without positions.

    A `DataLoader` with a generator of its own gets it seeded from the global one, so that inside `seeded` its order too
    depends on the seed and the epoch alone.
    Raises: DataError for anything but tuples of tensors, and for images that are not finite.
    """
    for number, batch in enumerate(_drawn(loader, epoch), start=1):
        match batch:
            case (Tensor() as images, Tensor() as labels):
                _check_finite(images, epoch, number)
                yield images, labels
            case (Tensor() as images, Tensor() as labels, Tensor() as positions) if _positions(images, positions):
                _check_finite(images, epoch, number)
                yield images, labels
            case _:
                raise DataError(f"the loader yields {_shown(batch)}; want pairs (images, labels) of tensors")


def indexed_batches(loader: Loader, epoch: int) -> Iterator[IndexedBatch]:
    """The same with positions. Raises: DataError, also for a loader that gives none."""
    for number, batch in enumerate(_drawn(loader, epoch), start=1):
        match batch:
            case (Tensor() as images, Tensor() as labels, Tensor() as positions) if _positions(images, positions):
                _check_finite(images, epoch, number)
                yield IndexedBatch(images, labels, positions.cpu().long())
            case _:
                raise DataError(
                    f"the loader yields {_shown(batch)}, without positions, which refining labels needs; want triples "
                    "(images, labels, positions): a curlfx data set, or one whose items end in their own index"
                )


def _check_finite(images: Tensor, epoch: int, number: int) -> None:
    """Refuse a batch with NaN or infinite values, which no loss survives.

    Batches on a GPU are let through, for a look would wait for it; the loss is looked at anyway.
    Raises: DataError naming the image.
    """
    if images.device.type != "cpu" or not images.is_floating_point() or math.isfinite(float(images.sum())):
        return
    bad = (~images.isfinite()).reshape(len(images), -1).any(1).nonzero()
    if len(bad):  # else the sum of finite numbers was too large
        raise DataError(
            f"epoch {epoch + 1}, batch {number}: image {int(bad[0])} of the batch holds NaN or infinite values; "
            "mend or remove it"
        )


def _positions(images: Tensor, found: Tensor) -> bool:
    """Whether a third tensor is whole numbers, one per image; anything else would be dropped without a word."""
    return found.shape == images.shape[:1] and not (found.is_floating_point() or found.is_complex())


def _shown(batch: object) -> str:
    if isinstance(batch, Tensor):
        return f"{batch.dtype} {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"({', '.join(map(_shown, batch))})"
    return type(batch).__name__


def _drawn(loader: Loader, epoch: int) -> Iterable[Any]:
    if isinstance(loader, EpochLoader):
        return loader.epoch(epoch)
    sampler = getattr(loader, "sampler", None)
    if sampler is not None and hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    generator = getattr(loader, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(torch.initial_seed())
    return loader


@contextmanager
def drawing(seeds: Sequence[int], device: torch.device) -> Iterator[None]:
    """Random state of torch that follows from ``seeds``; the one before, untouched, afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(tuple(seeds)).generate_state(1)[0]))
        yield


@contextmanager
def seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Random state (torch, `random`, NumPy) that follows from ``seed`` and ``epoch``; the caller's own afterwards.

    With every epoch seeded afresh, a resumed training needs no saved random state to draw the same numbers.
    """
    value = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 — users' transforms draw from it
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
