"""Images too many or too large for memory: read one by one, by worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curlfx.errors import DataError
from curlfx.sources.images import Augment

MAX_WORKERS = 8
Item = tuple[int, int]
"""Position of an image, and the seed of its random changes."""
Change = Callable[[Tensor], Tensor]
"""Makes an image of another, ``(C, H, W)`` in and out, of one dtype."""


class Reader(Protocol):
    """Reads one image; goes to other processes, so it must be picklable."""

    def read(self, index: int, *, augment: Augment, change: Change | None = None) -> Tensor:
        """Return image ``index``, ``(C, H, W)`` float32; ``change`` comes before the random changes.

        Raises: DataError naming the file.
        """


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images that a reader reads when they are asked for.

    Attributes:
        reader: Reads one image by its position in the whole.
        positions: ``(N,)`` int64: the images of this split, in the reader's numbering.
        labels: ``(N,)`` int64.
        workers: Processes that read; 0 reads here.
    """

    reader: Reader
    positions: Tensor
    labels: Tensor
    workers: int

    def batches(self, order: Sequence[Tensor], *, augment: Augment, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as `curlfx.sources.images.Images.batches` says.

        The seed of an image's random changes depends on ``seed`` and its place in ``order``, not on the worker.
        """
        count = sum(len(indices) for indices in order)
        drawn = torch.randint(2**32, (count,), generator=torch.Generator().manual_seed(seed))
        seeds = iter(drawn.tolist())
        items = [[(int(self.positions[index]), next(seeds)) for index in indices] for indices in order]
        loader: DataLoader[Any] = DataLoader(
            _Reads(self.reader, augment=augment),
            batch_sampler=items,
            num_workers=min(self.workers, len(items)),
            collate_fn=_stacked,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=torch.cuda.is_available(),
        )
        for indices, images in zip(order, loader, strict=True):
            if isinstance(images, DataError):
                raise images
            yield images, self.labels[indices]

    def subset(self, indices: Tensor) -> StreamedImages:
        """Return the images at ``indices``."""
        return replace(self, positions=self.positions[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> StreamedImages:  # noqa: ARG002
        """Return these images: they go to the device a batch at a time."""
        return self


class _Reads(Dataset[Tensor | DataError]):
    def __init__(self, reader: Reader, *, augment: Augment) -> None:
        self.reader = reader
        self.augment: Augment = augment

    def __getitem__(self, item: Item) -> Tensor | DataError:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                return self.reader.read(index, augment=self.augment)
            except DataError as error:
                return error  # raised where the batch is used, without the worker's traceback in its message


def _stacked(images: list[Tensor | DataError]) -> Tensor | DataError:
    for image in images:
        if isinstance(image, DataError):
            return image
    return torch.stack([image for image in images if isinstance(image, Tensor)])


def default_workers() -> int:
    """Return how many processes should read: one per core that this process may use, at most `MAX_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores == 1 else min(cores, MAX_WORKERS)
