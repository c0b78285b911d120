"""The expanded data as an image folder, for programs that read files, and to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from curlfx.errors import DataError, OutputError
from curlfx.files import unwritable, write_bytes
from curlfx.sources.expansion import VERSIONS, Expansion
from curlfx.sources.folder import MODES, FolderReader, opened
from curlfx.sources.images import ArrayImages, Images
from curlfx.sources.source import DataSource
from curlfx.sources.streamed import StreamedImages

RECORD = "expansion.json"
"""What the images are: written first, so that an interrupted writing goes on only with the same ones."""


def write_expanded(data: DataSource, folder: Path, *, seed: int = 0) -> int:
    """Write every training image in six versions, and the other splits as they are, as ``imagefolder:DIR`` reads them.

    ``folder/train/<class>/<number>-<version>.png``, at the size of the source; the versions are those that
    `DataSource.expanded` makes for the same seed. The folder appears when all is written. What an interrupted call has
    written is beside it in ``.<name>.partial``, and is not written again.

    Returns: the number of images in all splits.
    Raises: DataError for images that are no pixels (float tensors of a torch data set) or have no 1 or 3 channels;
        OutputError when the folder is there already, cannot be written, or was begun with other images.
    """
    for split in data.splits:
        _check(data.images(split), f"data {data.name}, {split}")
    if folder.exists():
        raise OutputError(f"{folder}: there is something already; name another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    record = {"data": data.name, "seed": seed, "images": {split: data.size(split) for split in data.splits}}
    _begin(partial, {**record, "classes": list(data.classes), "versions": list(VERSIONS)})
    names = _folder_names(data.classes)
    count = 0
    for split in data.splits:
        images = data.images(split)
        for name in names:
            _make(partial / split / name)
        for stem, number in _numbers(len(images.labels), expand=split == "train"):
            label = int(images.labels[number % len(images.labels)])
            path = partial / split / names[label] / f"{stem}.png"
            if not (path.exists() and path.stat().st_size):  # a machine that went down may leave empty files
                _write(path, _version(images, number, seed))
            count += 1
    try:
        os.sync()
        partial.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    return count


def _begin(partial: Path, record: dict[str, object]) -> None:
    """Make the unfinished folder, or find that it was begun with the same images. Raises: OutputError."""
    path = partial / RECORD
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: cannot read it ({error}); remove {partial}") from error
        if found != record:
            changed = next(key for key in record if found.get(key) != record[key])
            raise OutputError(f"{partial} was begun with other data ({changed} differs); remove it, or name another")
        return
    _make(partial)
    write_bytes(path, json.dumps(record, indent=2).encode())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def _folder_names(classes: tuple[str, ...]) -> list[str]:
    """Names of folders whose alphabetical order is that of the labels; the class names themselves where that works."""
    plain = [name for name in classes if name and "/" not in name and not name.startswith(".")]
    if plain == sorted(set(plain)) and len(plain) == len(classes):
        return plain
    digits = len(str(len(classes) - 1))
    return [f"{label:0{digits}}-{name.replace('/', '-')}" for label, name in enumerate(classes)]


def _numbers(count: int, *, expand: bool) -> Iterator[tuple[str, int]]:
    """File stems and numbers of what to write, as `Expansion` numbers it."""
    for image in range(count):
        for version, name in enumerate(VERSIONS) if expand else [(0, "original")]:
            yield f"{image:07}-{name}", version * count + image


def _check(images: Images, where: str) -> None:
    """Raises: DataError for what cannot be written as PNG."""
    if isinstance(images, ArrayImages):
        channels = images.pixels.shape[1]
    elif isinstance(images, StreamedImages) and isinstance(images.reader, FolderReader):
        channels = images.reader.shape[0]
    else:
        raise DataError(f"{where}: only pixels in memory or in files can be written; train on data.expanded() instead")
    if channels not in MODES:
        raise DataError(f"{where}: {channels} channels fit no PNG file, 1 or 3 do; train on data.expanded() instead")


def _version(images: Images, number: int, seed: int) -> Tensor:
    """Pixels ``(C, H, W)`` uint8 of one version of one image."""
    expansion = Expansion(len(images.labels), seed)
    pixels = _pixels(images, number % expansion.count)
    return expansion.apply(pixels[None], torch.tensor([number]))[0]


def _pixels(images: Images, index: int) -> Tensor:
    if isinstance(images, ArrayImages):
        return (images.pixels[index].cpu().float() * (255 / images.normalisation.scale)).round().to(torch.uint8)
    if isinstance(images, StreamedImages) and isinstance(images.reader, FolderReader):
        path = images.reader.paths[int(images.positions[index])]
        found: Tensor = v2.functional.pil_to_tensor(opened(path, images.reader.shape[0]))
        return found
    raise DataError(f"images of type {type(images).__name__} are no pixels")


def _write(path: Path, pixels: Tensor) -> None:
    """Write one PNG file, whole or not at all; flushed to disk with all others at the end."""
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    temporary = path.with_suffix(".partial")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
