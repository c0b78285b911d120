"""The proxy set: images for scoring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from curlfx.errors import DataError


class ProxySet:
    """Batches of images, read one at a time, with the classes beside them for who wants them.

    Args:
        data: An iterable of batches (a data loader), one batch, or None.
    """

    def __init__(self, data: Iterable[object] | Tensor | None) -> None:
        self._data: Iterable[object] | None = [data] if isinstance(data, Tensor) else data
        self.images = 0

    @property
    def count(self) -> int | None:
        """Number of batches, None while the data does not say."""
        try:
            return len(self._data)  # type: ignore[arg-type]
        except TypeError:  # a generator, or a loader over a stream
            return None

    def batches(self, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
        """The images, batch after batch, where and as the network wants them.

        Raises: DataError when there are none, or when a batch does not start with a tensor of finite numbers.
        """
        return (images for images, _ in self.labelled(device, dtype))

    def labelled(self, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As `batches`, with the classes of the images: a whole number for each (or for each pixel) that comes second.

        None where a batch has nothing of that kind. Raises: as there.
        """
        if self._data is None:
            raise DataError("data: none was given, and this criterion looks at images; pass batches of training images")
        self.images = 0
        for number, batch in enumerate(self._data):
            images = _images(batch)
            if images is None or images.ndim < 1 or not len(images):
                raise DataError(f"data: batch {number} is a {type(batch).__name__}: want images first, in a tensor")
            if images.is_floating_point():
                images = images.to(device=device, dtype=dtype)
                if not bool(torch.isfinite(images).all()):
                    raise DataError(f"data: batch {number} has NaN or infinite values; clean the images")
            self.images += len(images)
            classes = _classes(batch, len(images))
            yield images.to(device), None if classes is None else classes.to(device)
        if not self.images:
            raise DataError("data: no batch in it; an iterator gives its batches only once")


def _images(batch: object) -> Tensor | None:
    while not isinstance(batch, Tensor):
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()), None)
        elif isinstance(batch, tuple | list) and batch:
            batch = batch[0]
        else:
            return None
    return batch


def _classes(batch: object, count: int) -> Tensor | None:
    """What stands second in a batch, if it can be classes of ``count`` images."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    second = parts[1] if isinstance(parts, tuple | list) and len(parts) > 1 else None
    if not isinstance(second, Tensor) or second.ndim < 1 or len(second) != count:
        return None
    return None if second.is_floating_point() or second.dtype == torch.bool else second.long()
