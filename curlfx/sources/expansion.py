"""Limited data expanded: every image in six versions, each of which is the same whenever it is asked for.

Each version only moves pixels about or blackens them, so it is a map from places of the result to places of the image,
and serves any number of channels, any size and any dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from curlfx.errors import DataError
from curlfx.sources.images import ArrayImages, Augment, Images
from curlfx.sources.streamed import Change, Reader, StreamedImages

DRAWS = 16
"""Random numbers behind one version of one image."""
CUT = (0.2, 0.5)
"""Least and greatest side of the box that is cut out, as a share of the image's."""
BLACK = -1

PixelMap = Callable[[Tensor, int, int], Tensor]
"""``(draws (n, DRAWS) in [0, 1), H, W) -> (n, H * W)`` int64: the place each pixel is taken from, or `BLACK`."""


def unchanged(draws: Tensor, height: int, width: int) -> Tensor:
    """Every pixel where it was."""
    return torch.arange(height * width).expand(len(draws), -1)


def shuffled_patches(draws: Tensor, height: int, width: int, *, count: int) -> Tensor:
    """``count`` x ``count`` equal patches in random order; rows and columns that do not divide stay where they are."""
    tall, wide = height // count, width // count
    if tall == 0 or wide == 0:
        return unchanged(draws, height, width)
    order = draws[:, : count * count].argsort(dim=1)
    rows, columns = torch.arange(tall * count), torch.arange(wide * count)
    patch = (rows // tall)[:, None] * count + (columns // wide)[None, :]
    source = order[:, patch]  # (n, rows, columns): the patch that comes here
    places = torch.arange(height * width).view(1, height, width).repeat(len(draws), 1, 1)
    moved = (
        (source // count * tall + (rows % tall)[:, None]) * width + source % count * wide + (columns % wide)[None, :]
    )
    places[:, : tall * count, : wide * count] = moved
    return places.flatten(1)


def cut_out(draws: Tensor, height: int, width: int) -> Tensor:
    """One black box, whose sides are the same random share of the image's, at a random place inside."""
    share = CUT[0] + (CUT[1] - CUT[0]) * draws[:, 0]
    tall, wide = (share * height).long(), (share * width).long()
    top, left = (draws[:, 1] * (height - tall + 1)).long(), (draws[:, 2] * (width - wide + 1)).long()
    down = _between(torch.arange(height), top, tall)
    across = _between(torch.arange(width), left, wide)
    box = (down[:, :, None] & across[:, None, :]).flatten(1)
    return unchanged(draws, height, width).masked_fill(box, BLACK)


def rotated(draws: Tensor, height: int, width: int) -> Tensor:
    """Turned counter-clockwise about its middle by whole degrees in [0, 360], on the same canvas; nearest pixel."""
    angle = (draws[:, 0] * 361).floor() * (math.pi / 180)
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64)[None, :] - (width - 1) / 2
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    column = (cosine * x - sine * y + (width - 1) / 2).round().long()
    row = (sine * x + cosine * y + (height - 1) / 2).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return torch.where(inside, row * width + column, BLACK).flatten(1)


VERSIONS: Mapping[str, PixelMap] = MappingProxyType(
    {
        "original": unchanged,
        "patches-2": functools.partial(shuffled_patches, count=2),
        "patches-3": functools.partial(shuffled_patches, count=3),
        "patches-4": functools.partial(shuffled_patches, count=4),
        "cut-out": cut_out,
        "rotation": rotated,
    }
)
"""The versions of an image, in order.

Source: data expansion of CURL, arXiv:1911.08114, and its code, where patches are made equal by resizing the image.
"""


def remapped(pixels: Tensor, places: Tensor) -> Tensor:
    """Take every pixel from its place, 0 for `BLACK`. Shapes: pixels ``(n, C, H, W)``, places ``(n, H * W)``."""
    places = places.to(pixels.device)[:, None]
    taken = pixels.flatten(2).gather(2, places.clamp(min=0).expand(-1, pixels.shape[1], -1))
    return taken.masked_fill(places == BLACK, 0).view_as(pixels)


@dataclass(frozen=True)
class Expansion:
    """The six versions of ``count`` images: number ``v * count + i`` is version v of image i; the images come first.

    Attributes:
        count: Number of images.
        seed: Of all random choices; with the number it decides a version whole.
    """

    count: int
    seed: int

    @property
    def total(self) -> int:
        """Number of all versions of all images."""
        return self.count * len(VERSIONS)

    def apply(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """Make versions ``numbers`` of the images ``pixels``, image ``numbers % count`` each.

        Shapes: pixels ``(n, C, H, W)`` of any dtype, numbers ``(n,)`` int64; result as pixels.
        """
        height, width = pixels.shape[2:]
        versions = numbers // self.count
        places = torch.empty(len(numbers), height * width, dtype=torch.int64)
        for version, pixel_map in enumerate(VERSIONS.values()):
            chosen = (versions == version).nonzero()[:, 0]
            if len(chosen):
                places[chosen] = pixel_map(self._draws(numbers[chosen]), height, width)
        return remapped(pixels, places)

    def _draws(self, numbers: Tensor) -> Tensor:
        """Random numbers in [0, 1) that follow from the seed and the number alone, ``(n, DRAWS)`` float64."""
        streams = (np.random.Philox(key=self.seed, counter=(0, number, 0, 0)) for number in numbers.tolist())
        return torch.from_numpy(np.stack([np.random.Generator(stream).random(DRAWS) for stream in streams]))


@dataclass(frozen=True, eq=False)
class ExpandedArray:
    """Images in memory, with their versions made a batch at a time, before any augmentation.

    Attributes:
        images: The images alone.
        expansion: Their versions.
        numbers: ``(N,)``: the versions that are here.
    """

    images: ArrayImages
    expansion: Expansion
    numbers: Tensor

    @property
    def labels(self) -> Tensor:
        """The labels ``(N,)``: those of the images."""
        return self.images.labels[self.numbers % self.expansion.count]

    def batches(self, order: Sequence[Tensor], *, augment: Augment, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as `Images.batches` says."""
        generator = torch.Generator().manual_seed(seed)
        for indices in order:
            numbers = self.numbers[indices]
            taken = self.images.subset(numbers % self.expansion.count)
            changed = replace(taken, pixels=self.expansion.apply(taken.pixels, numbers))
            yield changed.floats(augment, generator), changed.labels.to(changed.pixels.device)

    def subset(self, indices: Tensor) -> ExpandedArray:
        """Return the versions at ``indices``."""
        return replace(self, numbers=self.numbers[indices])

    def to(self, device: torch.device) -> ExpandedArray:
        """Return the same with the pixels on ``device``."""
        return replace(self, images=self.images.to(device))


@dataclass(frozen=True)
class ExpandedReader:
    """Reads versions of the images of another reader; pickled to worker processes.

    Attributes:
        reader: Reads the images.
        positions: ``(count,)``: the images, in the reader's numbering.
        expansion: Their versions.
    """

    reader: Reader
    positions: Tensor
    expansion: Expansion

    def read(self, index: int, *, augment: Augment, change: Change | None = None) -> Tensor:
        """Return version ``index`` of all, ``(C, H, W)`` float32, and of that what ``change`` makes of it."""

        def version(pixels: Tensor) -> Tensor:
            made = self.expansion.apply(pixels[None], torch.tensor([index]))[0]
            return made if change is None else change(made)

        image = int(self.positions[index % self.expansion.count])
        original = index < self.expansion.count
        return self.reader.read(image, augment=augment, change=change if original else version)


def expanded(images: Images, seed: int, where: str) -> Images:
    """Return every image in six versions: the images first, then every version of all in turn.

    Args:
        where: For messages.

    Raises: DataError for images of another kind than curlfx's own.
    """
    count = len(images.labels)
    expansion = Expansion(count, seed)
    if isinstance(images, ArrayImages):
        return ExpandedArray(images, expansion, torch.arange(expansion.total))
    if isinstance(images, StreamedImages) and not isinstance(images.reader, ExpandedReader):
        reader = ExpandedReader(images.reader, images.positions, expansion)
        labels = images.labels.repeat(len(VERSIONS))
        return StreamedImages(reader, torch.arange(expansion.total), labels, images.workers)
    raise DataError(
        f"{where}: images of type {type(images).__name__} cannot be expanded (again); want images in memory, in a "
        "folder, or of a torch data set, as curlfx.load_data gives them"
    )


def _between(places: Tensor, first: Tensor, length: Tensor) -> Tensor:
    """Whether places ``(P,)`` are in ``[first, first + length)``, ``(n, P)``."""
    return (places[None, :] >= first[:, None]) & (places[None, :] < (first + length)[:, None])
