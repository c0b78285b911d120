"""Data sets with a name: scikit-learn's digits, CIFAR-10, Fashion-MNIST, and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curlfx.errors import DataError
from curlfx.sources.images import ArrayImages, Augmentation, Normalisation, balanced, held_out
from curlfx.sources.source import DataRequest, DataSource, SplitName

DIGITS_TEST_SHARE = 0.25
NOISE_CLASSES = 10
NOISE_IMAGES: dict[SplitName, int] = {"train": 512, "test": 128}


def digits(request: DataRequest) -> DataSource:
    """Return the 1,797 grey 8 x 8 digits that come with scikit-learn; a fixed quarter of every class is for testing.

    Source: E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998).
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    pixels = torch.from_numpy(bundle.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    train, test = held_out(labels, DIGITS_TEST_SHARE)
    arrays: dict[SplitName, tuple[Tensor, Tensor]] = {
        "train": (pixels[train], labels[train]),
        "test": (pixels[test], labels[test]),
    }
    normalisation = Normalisation(mean=(0.305,), std=(0.376,), scale=16.0)
    return _from_arrays(request, arrays, tuple("0123456789"), normalisation, Augmentation(pad=1))


def cifar10(request: DataRequest) -> DataSource:
    """Return CIFAR-10 from ``DIR/cifar-10-batches-py``, whose checksums torchvision verifies before it reads it.

    Source: A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images (2009).
    """
    from torchvision.datasets import CIFAR10

    return _from_torchvision(request, CIFAR10, "cifar-10-batches-py/data_batch_1, …", Normalisation(), pad=4)


def fashion_mnist(request: DataRequest) -> DataSource:
    """Return Fashion-MNIST from ``DIR/FashionMNIST/raw``.

    Source: H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST (arXiv:1708.07747).
    """
    from torchvision.datasets import FashionMNIST

    normalisation = Normalisation(mean=(0.286,), std=(0.353,))
    return _from_torchvision(request, FashionMNIST, "FashionMNIST/raw/train-images-idx3-ubyte, …", normalisation, pad=2)


def random_images(request: DataRequest) -> DataSource:
    """Return noise with random labels of ten classes: something to run on, nothing to learn from."""
    generator = torch.Generator().manual_seed(0)
    shape = request.shape or (3, 32, 32)
    arrays: dict[SplitName, tuple[Tensor, Tensor]] = {}
    for split, count in NOISE_IMAGES.items():
        pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
        arrays[split] = (pixels, torch.arange(count) % NOISE_CLASSES)
    normalisation = Normalisation(mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    return _from_arrays(request, arrays, tuple(map(str, range(NOISE_CLASSES))), normalisation, Augmentation())


def _from_torchvision(
    request: DataRequest, dataset: type[Any], files: str, normalisation: Normalisation, pad: int
) -> DataSource:
    if not request.where:
        raise DataError(f"data {request.name}: want {request.name.partition(':')[0]}:DIR, with DIR/{files}")
    try:
        parts = {"train": dataset(Path(request.where), train=True), "test": dataset(Path(request.where), train=False)}
    except (RuntimeError, OSError, ValueError) as cause:
        raise DataError(f"data {request.name}: want {request.where}/{files}; missing, or not as published") from cause
    arrays: dict[SplitName, tuple[Tensor, Tensor]] = {
        "train": _pixels_and_labels(parts["train"]),
        "test": _pixels_and_labels(parts["test"]),
    }
    classes = tuple(parts["train"].classes)
    return _from_arrays(request, arrays, classes, normalisation, Augmentation(pad=pad, flip=True))


def _pixels_and_labels(part: Any) -> tuple[Tensor, Tensor]:
    pixels = torch.as_tensor(part.data)
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return pixels, torch.as_tensor(part.targets).long()


def _from_arrays(
    request: DataRequest,
    arrays: dict[SplitName, tuple[Tensor, Tensor]],
    classes: tuple[str, ...],
    normalisation: Normalisation,
    augmentation: Augmentation,
) -> DataSource:
    own = tuple(arrays["train"][0].shape[1:])
    shape = request.shape or (own[0], own[1], own[2])
    if own[0] not in (1, shape[0]):
        raise DataError(f"data {request.name} has {own[0]} colour channels, the network wants {shape[0]}")
    splits = {}
    for split, (pixels, labels) in arrays.items():
        images = ArrayImages(pixels, labels, request.normalisation or normalisation, augmentation, shape)
        splits[split] = images if request.limit is None else images.subset(balanced(labels, request.limit))
    return DataSource(request.name, classes, shape, splits)
