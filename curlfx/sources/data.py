"""Images from specifications: ``digits``, ``imagefolder:DIR``, ``cifar10:DIR``, ``fashion-mnist:DIR``, ``random``, …"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from curlfx.errors import CurlfxError, DataError, did_you_mean
from curlfx.sources.builtin import cifar10, digits, fashion_mnist, random_images
from curlfx.sources.factory import describe, load_attribute
from curlfx.sources.folder import image_folder
from curlfx.sources.images import Augment, Images, Normalisation, balanced, held_out
from curlfx.sources.source import DataRequest, DataSource, SplitName
from curlfx.sources.streamed import Change, StreamedImages

SOURCES: Mapping[str, Callable[[DataRequest], DataSource]] = MappingProxyType(
    {
        "digits": digits,
        "imagefolder": image_folder,
        "cifar10": cifar10,
        "fashion-mnist": fashion_mnist,
        "random": random_images,
    }
)
"""Prefix of a specification to what loads it; any other prefix is a file or a module."""


def load_data(
    spec: str,
    *,
    shape: tuple[int, int, int] | None = None,
    normalisation: Normalisation | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
    val_share: float = 0.0,
) -> DataSource:
    """Return the images that ``spec`` names.

    Args:
        spec: ``digits``, ``imagefolder:DIR``, ``cifar10:DIR``, ``fashion-mnist:DIR``, ``random``,
            ``file.py:factory`` or ``package.module:factory``. A factory returns a `DataSource`, or torch data sets by
            split: ``{"train": …, "test": …}``, which yield ``(float image (C, H, W), label)``.
        shape: Shape of one image ``(C, H, W)``; none takes the data's own (224 x 224 for large images of many sizes).
        normalisation: None takes what is usual for the data.
        limit: Images per split, every class as often as possible; none takes all.
        train_limit: The same for training images alone, after ``val`` has been held out.
        val_share: Share of the training images to hold out as ``val``, in [0, 1), where the data has no ``val``.

    Raises: DataError naming the folder, the class or the file that is missing or damaged.
    """
    for name, count in (("limit", limit), ("train_limit", train_limit)):
        if count is not None and count < 1:
            raise DataError(f"data {spec}: {name}={count}, want 1 or more")
    if not 0 <= val_share < 1:
        raise DataError(f"data {spec}: val_share={val_share}, want a share in [0, 1)")
    kind, separator, where = spec.partition(":")
    request = DataRequest(spec, where, shape, normalisation, limit)
    if kind in SOURCES:
        source = SOURCES[kind](request)
    elif separator:
        source = _from_factory(request)
    else:
        known = ", ".join(SOURCES)
        raise DataError(f"data {spec!r}: want one of {known}, or file.py:factory{did_you_mean(spec, SOURCES, 3)}")
    source = _with_val(source, val_share)
    return source if train_limit is None else _with_train(source, train_limit)


def _with_train(source: DataSource, limit: int) -> DataSource:
    train = source.images("train")
    splits: dict[SplitName, Images] = {**source.splits, "train": train.subset(balanced(train.labels, limit))}
    return replace(source, splits=splits)


def _with_val(source: DataSource, share: float) -> DataSource:
    if "val" in source.splits or share == 0:
        return source
    train = source.images("train")
    stay, out = held_out(train.labels, share)
    if len(stay) == 0 or len(out) == 0:
        raise DataError(f"data {source.name}: val_share={share} leaves {len(stay)} training and {len(out)} val images")
    splits: dict[SplitName, Images] = {**source.splits, "train": train.subset(stay), "val": train.subset(out)}
    return replace(source, splits=splits)


def _from_factory(request: DataRequest) -> DataSource:
    factory = load_attribute(request.name, DataError, SOURCES)
    try:
        made = factory() if callable(factory) else factory
    except CurlfxError:
        raise
    except (Exception, SystemExit) as cause:
        raise DataError(f"data {request.name}: its factory failed: {describe(cause)}") from cause
    source = made if isinstance(made, DataSource) else _from_datasets(request, made)
    if request.shape is not None and source.shape != request.shape:
        raise DataError(f"data {request.name} gives images of shape {source.shape}, the network wants {request.shape}")
    if request.limit is None:
        return source
    splits = {name: images.subset(balanced(images.labels, request.limit)) for name, images in source.splits.items()}
    return replace(source, splits=splits)


def from_datasets(splits: Mapping[SplitName, Dataset[Any]], *, name: str = "datasets") -> DataSource:
    """Return torch data sets as data for `curlfx.recover` and the other stages.

    Args:
        splits: ``train``, ``test`` and perhaps ``val``; each yields ``(float image (C, H, W), label)``.
        name: For messages.

    Raises: DataError for other splits, images of several shapes, labels that are no whole numbers from 0.
    """
    return _from_datasets(DataRequest(name), splits)


def _from_datasets(request: DataRequest, made: object) -> DataSource:
    wanted = "want a DataSource, or torch data sets by split: {'train': …, 'test': …}"
    if not isinstance(made, Mapping) or not {"train", "test"} <= set(made) <= {"train", "val", "test"}:
        raise DataError(f"data {request.name}: its factory returned {type(made).__name__}; {wanted}")
    labels = {name: _labels(dataset, f"data {request.name}, {name}") for name, dataset in made.items()}
    first = DatasetReader(made["train"], request.name).read(0, augment=False)
    if first.dim() != 3:
        raise DataError(f"data {request.name}: an image has shape {tuple(first.shape)}, want (C, H, W)")
    splits: dict[SplitName, Images] = {}
    for name, dataset in made.items():
        reader = DatasetReader(dataset, request.name, tuple(first.shape))
        splits[name] = StreamedImages(reader, torch.arange(len(labels[name])), labels[name], 0)
    names = getattr(made["train"], "classes", None)
    count = 1 + max(int(images.labels.max()) for images in splits.values())
    classes = tuple(map(str, names if names is not None else range(count)))
    if count > len(classes):
        raise DataError(f"data {request.name}: label {count - 1}, but there are {len(classes)} classes")
    channels, height, width = first.shape
    return DataSource(request.name, classes, (channels, height, width), splits)


def _labels(dataset: Any, where: str) -> Tensor:
    try:
        known = getattr(dataset, "targets", None)
        labels = torch.as_tensor([int(label) for _, label in dataset] if known is None else known).long()
    except (TypeError, ValueError) as cause:
        raise DataError(f"{where}: want pairs (image, label) with whole numbers as labels ({cause})") from cause
    if labels.dim() != 1 or len(labels) == 0 or int(labels.min()) < 0:
        raise DataError(f"{where}: labels of shape {tuple(labels.shape)}, want one number from 0 for every image")
    return labels


@dataclass(frozen=True)
class DatasetReader:
    """Reads from a torch data set, whose own transforms do what is to be done.

    Attributes:
        dataset: Yields ``(image, label)``.
        name: For messages.
        shape: What every image must have; none takes any.
    """

    dataset: Dataset[tuple[Tensor, int]]
    name: str
    shape: tuple[int, ...] | None = None

    def read(self, index: int, *, augment: Augment, change: Change | None = None) -> Tensor:  # noqa: ARG002
        """Return image ``index``, ``(C, H, W)`` float32; ``change`` comes after the data set's own transforms.

        Raises: DataError for another shape, and for what is no float tensor of finite values.
        """
        image: object = self.dataset[index][0]
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"data {self.name}: image {index} is {found}, want a float tensor (C, H, W)")
        if self.shape is not None and tuple(image.shape) != self.shape:
            raise DataError(
                f"data {self.name}: image {index} has shape {tuple(image.shape)}, the first one {self.shape}; "
                "bring them to one size"
            )
        if not bool(torch.isfinite(image).all()):
            raise DataError(f"data {self.name}: image {index} holds NaN or infinite values; mend or remove it")
        image = image.float()
        return image if change is None else change(image)
