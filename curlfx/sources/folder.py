"""``imagefolder:DIR``: ``DIR/train/<class>/*.jpg`` beside ``DIR/test`` or ``DIR/val``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from curlfx.errors import DataError
from curlfx.sources.images import ArrayImages, Augment, Augmentation, Images, Normalisation, balanced
from curlfx.sources.source import DataRequest, DataSource, SplitName
from curlfx.sources.streamed import Change, StreamedImages, default_workers

SMALL = 64
"""Images of at most this height and width, in pixels, are decoded once and kept."""
MEMORY = 4 * 2**30
"""Bytes of decoded images that may be kept."""
LARGE_SHAPE = (3, 224, 224)
CROP_SHARE = 224 / 256
"""Evaluation takes this share of the shorter side, from the middle. Source: the ImageNet protocol of torchvision."""
MODES = {1: "L", 3: "RGB"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called: a file in PostScript would be handed to another program."""


@dataclass(frozen=True)
class Listing:
    """The image files of one split.

    Attributes:
        paths: In the order of class and name.
        labels: ``(N,)`` int64.
    """

    paths: tuple[Path, ...]
    labels: Tensor


def image_folder(request: DataRequest) -> DataSource:
    """Return the images in a folder.

    Without ``test`` the images in ``val`` are the test images. Images up to 64 x 64 stay in memory, decoded.
    Raises: DataError when a folder is missing or a class is empty; later, naming the file, when an image is damaged.
    """
    if not request.where:
        raise DataError(f"data {request.name}: want imagefolder:DIR, with DIR/train/<class>/*.jpg and DIR/test")
    root = Path(request.where)
    if not root.is_dir():
        raise DataError(f"data {request.name}: no folder {root}")
    classes = _class_names(root)
    listings = {split: _listed(folder, classes, request.limit) for split, folder in _split_folders(root).items()}
    shape = request.shape or _own_shape(listings["train"].paths[0])
    if shape[0] not in MODES:
        raise DataError(f"data {request.name}: images have 1 or 3 colour channels, the network wants {shape[0]}")
    normalisation = request.normalisation or default_normalisation(shape[0])
    total = sum(len(listing.paths) for listing in listings.values()) * int(np.prod(shape))
    kept = max(shape[1:]) <= SMALL and total <= MEMORY
    make = _decoded if kept else _streamed
    splits = {split: make(listing, shape, normalisation) for split, listing in listings.items()}
    return DataSource(request.name, classes, shape, splits)


def default_normalisation(channels: int) -> Normalisation:
    """Return ImageNet's for colour images, its mean over colours for grey ones."""
    return Normalisation() if channels == 3 else Normalisation(mean=(0.449,), std=(0.226,))


def _split_folders(root: Path) -> dict[SplitName, Path]:
    train, val, test = root / "train", root / "val", root / "test"
    if not train.is_dir():
        raise DataError(f"no folder {train}: want {root}/train/<class>/*.jpg, and the same in {root}/test")
    if test.is_dir():
        return {"train": train, "val": val, "test": test} if val.is_dir() else {"train": train, "test": test}
    if val.is_dir():
        return {"train": train, "test": val}
    raise DataError(f"no folder {test} or {val}: want {root}/test/<class>/*.jpg to measure accuracy on")


def _class_names(root: Path) -> tuple[str, ...]:
    folders = _split_folders(root)
    names = _folders_in(folders["train"])
    if len(names) < 2:
        raise DataError(f"{folders['train']} holds {len(names)} class folders, want two or more")
    for folder in folders.values():
        strange = sorted(set(_folders_in(folder)) - set(names))
        if strange:
            raise DataError(f"{folder / strange[0]}: there are no training images of class {strange[0]!r}")
    return names


def _folders_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _listed(folder: Path, classes: tuple[str, ...], limit: int | None) -> Listing:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _image_files(folder / name)
        if not files:
            raise DataError(f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
        paths += files
        labels += [label] * len(files)
    numbers = torch.tensor(labels)
    chosen = torch.arange(len(paths)) if limit is None else balanced(numbers, limit)
    return Listing(tuple(paths[index] for index in chosen), numbers[chosen])


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def _own_shape(path: Path) -> tuple[int, int, int]:
    image = opened(path, 3)
    return (3, image.height, image.width) if max(image.size) <= SMALL else LARGE_SHAPE


def opened(path: Path, channels: int) -> Image.Image:
    """Return a decoded image. Raises: DataError naming the file when it is missing or damaged."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert(MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        reason = str(cause).replace(f" '{path}'", "")
        raise DataError(f"{path} is no readable image ({reason}); mend or remove it") from cause


def _decoded(listing: Listing, shape: tuple[int, int, int], normalisation: Normalisation) -> Images:
    channels, height, width = shape

    def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image = opened(path, channels)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, channels)

    decoded = np.empty((len(listing.paths), height, width, channels), np.uint8)
    with ThreadPoolExecutor(max(default_workers(), 1)) as pool:
        for index, image in enumerate(pool.map(pixels, listing.paths)):
            decoded[index] = image
    augmentation = Augmentation(pad=max(height, width) // 8, flip=True)
    stored = torch.from_numpy(decoded).permute(0, 3, 1, 2)
    return ArrayImages(stored, listing.labels, normalisation, augmentation)


def _streamed(listing: Listing, shape: tuple[int, int, int], normalisation: Normalisation) -> Images:
    reader = FolderReader(listing.paths, shape, normalisation)
    return StreamedImages(reader, torch.arange(len(listing.paths)), listing.labels, default_workers())


@dataclass(frozen=True)
class FolderReader:
    """Reads an image file as the ImageNet protocol does: random resized crop and flip, or resize and centre crop.

    The mild random changes are resize, random crop and flip.

    Attributes:
        paths: The files.
        shape: Shape ``(C, H, W)`` of the result.
        normalisation: Pixels to floats.
    """

    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    normalisation: Normalisation

    def read(self, index: int, *, augment: Augment, change: Change | None = None) -> Tensor:
        """Return image ``index``, ``(C, H, W)`` float32; ``change`` sees the file's own pixels.

        Raises: DataError naming the file.
        """
        image = opened(self.paths[index], self.shape[0])
        if change is not None:
            image = v2.functional.to_pil_image(change(v2.functional.pil_to_tensor(image)))
        size = list(self.shape[1:])
        around = round(max(size) / CROP_SHARE)
        if augment == "mild":
            steps = [v2.Resize(around), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
        elif augment:
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        else:
            steps = [v2.Resize(around), v2.CenterCrop(size)]
        changed = v2.Compose(steps)(image)
        return self.normalisation(v2.functional.pil_to_tensor(changed)[None])[0]
