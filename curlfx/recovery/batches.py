"""What a loader of images and labels must offer, and how an epoch is drawn from one."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from curlfx.errors import DataError

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class EpochLoader(Protocol):
    """Batches that are a function of the epoch number: the property that makes a resumed training bit-equal.

    Shapes: images ``(B, C, H, W)`` (any shape the network takes), labels ``(B,)`` class numbers, or ``(B, K)``
    probabilities.
    """

    def epoch(self, number: int) -> Iterable[Batch]:
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
    """Batches of epoch ``epoch`` (from 0) of either kind of loader.

    A `DataLoader` with a generator of its own gets it seeded from the global one, so that inside `seeded` its order too
    depends on the seed and the epoch alone. Raises: DataError for anything but pairs of tensors.
    """
    if isinstance(loader, EpochLoader):
        drawn: Iterable[Any] = loader.epoch(epoch)
    else:
        sampler = getattr(loader, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        generator = getattr(loader, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(torch.initial_seed())
        drawn = loader
    for batch in drawn:
        match batch:
            case (Tensor() as images, Tensor() as labels):
                yield images, labels
            case _:
                raise DataError(f"the loader yields {type(batch).__name__}; want pairs (images, labels) of tensors")


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
