"""Images with labels, and the batches that training and evaluation take from them.

Small images live in memory as one uint8 tensor and are cropped, flipped and normalised a batch at a time; large ones
are decoded from their files by worker processes. Both give the same batches for the same ``(seed, epoch)``, whatever
came before, so an interrupted training goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Augment = bool | Literal["mild"]
"""Random changes: none, those of a training, or milder ones, which leave nearly the whole of a large image in view."""
SUBSET_SEED = 0
"""Subsets and held-out images are the same in every run, whatever its seed."""


@dataclass(frozen=True)
class Normalisation:
    """Pixels to floats: ``(pixel / scale - mean) / std``, per colour channel.

    Attributes:
        mean: One number per colour channel, in units of ``scale``.
        std: Likewise.
        scale: The pixel value that stands for 1.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 255.0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float images. Shapes: pixels ``(N, C, H, W)`` uint8; result the same in float32."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1) * self.scale
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1) * self.scale
        return (pixels.float() - mean) / std


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        pad: Zero pixels added on every side before a random crop of the old size.
        flip: Mirror every other image.
    """

    pad: int = 0
    flip: bool = False


class Images(Protocol):
    """The images of one split.

    Attributes:
        labels: ``(N,)`` int64, on the CPU.
    """

    @property
    def labels(self) -> Tensor:
        """Return the labels."""

    def batches(self, order: Sequence[Tensor], *, augment: Augment, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images, labels)`` for every index tensor of ``order``; ``seed`` decides the random changes."""

    def subset(self, indices: Tensor) -> Self:
        """Return the images at ``indices``."""

    def to(self, device: torch.device) -> Self:
        """Return the images with their pixels on ``device``, where they live in memory at all."""


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in memory.

    Attributes:
        pixels: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        normalisation: Pixels to floats.
        augmentation: For batches that ask for it.
        shape: Shape ``(C, H, W)`` that images are brought to, after the random changes; none leaves their own. One
            colour channel is repeated, sizes are interpolated.
    """

    pixels: Tensor
    labels: Tensor
    normalisation: Normalisation
    augmentation: Augmentation = Augmentation()
    shape: tuple[int, int, int] | None = None

    def batches(self, order: Sequence[Tensor], *, augment: Augment, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as `Images.batches` says."""
        generator = torch.Generator().manual_seed(seed)
        for indices in order:
            batch = self.subset(indices)
            yield batch.floats(augment, generator), batch.labels.to(self.pixels.device)

    def floats(self, augment: Augment, generator: torch.Generator) -> Tensor:
        """Return all images as a network takes them, ``(N, C, H, W)`` float32; the mild changes are the usual ones."""
        pixels = augmented(self.pixels, self.augmentation, generator) if augment else self.pixels
        return resized(self.normalisation(pixels), self.shape)

    def subset(self, indices: Tensor) -> ArrayImages:
        """Return the images at ``indices``."""
        return replace(self, pixels=self.pixels[indices.to(self.pixels.device)], labels=self.labels[indices])

    def to(self, device: torch.device) -> ArrayImages:
        """Return the images with their pixels on ``device``."""
        return replace(self, pixels=self.pixels.to(device))


def augmented(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Crop and flip every image at random, in one gather. Shapes: ``(N, C, H, W)`` in and out."""
    count, _, height, width = pixels.shape
    pad, device = augmentation.pad, pixels.device
    offsets = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    mirror = torch.rand(count, 1, generator=generator) < (0.5 if augmentation.flip else 0.0)
    across = torch.arange(width)
    rows = (offsets[0] + torch.arange(height)).to(device)
    columns = (offsets[1] + torch.where(mirror, across.flip(0), across)).to(device)
    padded = torch.nn.functional.pad(pixels, (pad, pad, pad, pad))
    images = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized(images: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Bring float images to ``shape``. Shapes: ``(N, c, h, w)`` in, ``(N, C, H, W)`` out."""
    if shape is None or images.shape[1:] == shape:
        return images
    if images.shape[1] != shape[0]:
        images = images.expand(-1, shape[0], -1, -1)
    size = list(shape[1:])
    return torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class Loader:
    """Batches of one split; the order and the random changes of an epoch depend on ``(seed, epoch)`` alone.

    Batches differ by at most one image in size: none is dropped, and none is so small that BatchNorm's statistics
    would suffer.

    Args:
        augment: Random changes of the images.
        shuffle: Another order in every epoch.
        indexed: Yield triples whose third are the images' positions in the split, ``(B,)`` int64 on the CPU.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augment = False,
        shuffle: bool = False,
        indexed: bool = False,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.augment: Augment = augment
        self.shuffle = shuffle
        self.indexed = indexed

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self.images.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of epoch 0."""
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of epoch ``number``, from 0."""
        count, seed = len(self.images.labels), epoch_seed(self.seed, number)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        positions = order.tensor_split(len(self))
        batches = self.images.batches(positions, augment=self.augment, seed=seed)
        return _indexed(batches, positions) if self.indexed else batches


def _indexed(batches: Iterator[tuple[Tensor, Tensor]], positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    for (images, labels), where in zip(batches, positions, strict=True):
        yield images, labels, where


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch, below 2**32: torch's generator on the CPU reads no more bits than these."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def balanced(labels: Tensor, limit: int) -> Tensor:
    """Return ``limit`` positions (all when there are fewer), every class as often as possible, the same in every run.

    Shapes: labels ``(N,)``; result ``(min(limit, N),)``, increasing.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SUBSET_SEED))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    grouped = labels[by_class]
    first = torch.searchsorted(grouped, grouped)  # where the class begins
    rank = torch.arange(len(labels)) - first
    return by_class[rank.argsort(stable=True)[:limit]].sort().values


def held_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the positions that stay and those held out: ``share`` of every class, the same in every run."""
    generator = torch.Generator().manual_seed(SUBSET_SEED)
    out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: round(share * len(members))]
        out[members[chosen]] = True
    return (~out).nonzero()[:, 0], out.nonzero()[:, 0]
