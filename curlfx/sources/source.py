"""Labelled images in splits, as training, scoring and evaluation take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from curlfx.errors import DataError
from curlfx.sources.expansion import expanded
from curlfx.sources.images import Augment, Images, Loader, Normalisation

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False)
class DataSource:
    """Labelled images, split for training and for testing.

    Attributes:
        name: The specification.
        classes: Class names; a label is a position in it.
        shape: Shape of one image ``(C, H, W)``.
        splits: ``train`` and ``test``, and ``val`` when the data or a held-out share gives one.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    splits: Mapping[SplitName, Images]

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    def size(self, split: SplitName) -> int:
        """Return the number of images. Raises: DataError when there is no such split."""
        return len(self.images(split).labels)

    def images(self, split: SplitName) -> Images:
        """Return the images of a split. Raises: DataError when there is no such split."""
        if split not in self.splits:
            raise DataError(f"data {self.name} has no {split} images, only {', '.join(self.splits)}")
        return self.splits[split]

    def loader(
        self,
        split: SplitName,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augment = False,
        shuffle: bool = False,
        indexed: bool = False,
    ) -> Loader:
        """Return batches ``(images (N, C, H, W) float32, labels (N,) int64)``; ``indexed``: and ``positions (N,)``.

        Raises: DataError: no such split.
        """
        return Loader(self.images(split), batch_size, seed=seed, augment=augment, shuffle=shuffle, indexed=indexed)

    def expanded(self, seed: int = 0) -> DataSource:
        """Return the same data with every training image in six versions, the images themselves first.

        Version v of image i is at position ``v * size("train") + i`` of this data, and the same whenever it is asked
        for; random changes of a training come on top. Raises: DataError for images that are expanded already.
        """
        train = expanded(self.images("train"), seed, f"data {self.name}")
        return replace(self, splits={**self.splits, "train": train})

    def proxy(self, n: int, seed: int = 0) -> Tensor:
        """Return ``n`` random training images, all of them when there are fewer, as they look in evaluation.

        Shapes: ``(n, C, H, W)`` float32.
        """
        images, order = self.images("train"), self._drawn(n, seed)
        return torch.cat([batch for batch, _ in images.batches(torch.split(order, 64), augment=False, seed=0)])

    def proxy_classes(self, n: int, seed: int = 0) -> Tensor:
        """Return the classes ``(n,)`` int64 of the images of `proxy`."""
        return self.images("train").labels[self._drawn(n, seed)].cpu()

    def _drawn(self, n: int, seed: int) -> Tensor:
        """Places of ``n`` random training images."""
        count = len(self.images("train").labels)
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:n]

    def to(self, device: torch.device | str) -> DataSource:
        """Return the same data, with the pixels on ``device`` where they live in memory."""
        place = torch.device(device)
        return replace(self, splits={name: images.to(place) for name, images in self.splits.items()})


@dataclass(frozen=True)
class DataRequest:
    """What a specification and the user ask for.

    Attributes:
        name: The whole specification, for messages.
        where: What follows its colon.
        shape: Shape of one image ``(C, H, W)``; none takes that of the data.
        normalisation: None takes that of the data.
        limit: Images per split; none takes all.
    """

    name: str
    where: str = ""
    shape: tuple[int, int, int] | None = None
    normalisation: Normalisation | None = None
    limit: int | None = None
