"""Image folders: small images in memory, large ones read when needed; every fault names the file or the folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from curlfx.errors import DataError
from curlfx.sources import load_data
from curlfx.sources.images import ArrayImages
from curlfx.sources.streamed import StreamedImages

Folder = Callable[..., Path]


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Builds DIR/<split>/<class>/<n>.png."""

    def build(*, size: tuple[int, int] = (10, 8), splits: tuple[str, ...] = ("train", "test"), count: int = 4) -> Path:
        for split in splits:
            for label, name in enumerate(("cat", "dog", "owl")):
                for number in range(count):
                    write_image(tmp_path / split / name / f"{number}.png", size, 100 * label + number + len(split))
        return tmp_path

    return build


def test_small_images_keep_their_size_and_pixels(folder: Folder) -> None:
    root = folder()
    data = load_data(f"imagefolder:{root}")
    assert (data.shape, data.classes) == ((3, 8, 10), ("cat", "dog", "owl"))
    images = data.images("train")
    assert isinstance(images, ArrayImages)
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    pixels = np.asarray(Image.open(root / "train" / "dog" / "1.png"))
    assert np.array_equal(images.pixels[5].permute(1, 2, 0).numpy(), pixels)


def test_shape_that_the_network_wants(folder: Folder) -> None:
    data = load_data(f"imagefolder:{folder()}", shape=(1, 16, 16))
    assert data.proxy(2).shape == (2, 1, 16, 16)
    with pytest.raises(DataError, match="1 or 3 colour channels, the network wants 4"):
        load_data(f"imagefolder:{folder()}", shape=(4, 16, 16))


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_are_the_same_with_and_without_workers(workers: int, folder: Folder) -> None:
    data = load_data(f"imagefolder:{folder(size=(90, 70))}", shape=(3, 80, 80))
    images = data.images("train")
    assert isinstance(images, StreamedImages)

    def epoch(number: int, workers: int) -> torch.Tensor:
        source = replace(data, splits={"train": replace(images, workers=workers)})
        loader = source.loader("train", 5, seed=3, augment=True, shuffle=True)
        return torch.cat([batch for batch, _ in loader.epoch(number)])

    assert epoch(1, workers).shape == (12, 3, 80, 80)
    assert torch.equal(epoch(1, workers), epoch(1, 0))
    assert not torch.equal(epoch(1, workers), epoch(2, 0))


def test_large_images_in_evaluation(folder: Folder) -> None:
    root = folder(size=(160, 120))
    data = load_data(f"imagefolder:{root}", shape=(3, 70, 70))
    image, label = next(iter(data.loader("test", 1)))
    assert label.tolist() == [0]
    source = Image.open(root / "test" / "cat" / "0.png").resize((106, 80), Image.Resampling.BILINEAR)
    crop = np.asarray(source)[5:75, 18:88] / 255
    expected = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(image[0].permute(1, 2, 0), expected, atol=0.03)


def test_large_images_of_the_folder_itself(folder: Folder) -> None:
    assert load_data(f"imagefolder:{folder(size=(90, 70))}").shape == (3, 224, 224)


def test_limit_reads_only_what_it_takes(folder: Folder) -> None:
    root = folder(count=5)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes() if path.name in "0.png 1.png 2.png" else b"damaged")
    with pytest.raises(DataError, match=r"\d\.png is no readable image"):
        load_data(f"imagefolder:{root}")
    (root / "train" / "cat" / "3.png").unlink()
    assert load_data(f"imagefolder:{folder(count=5)}", limit=3).images("train").labels.tolist() == [0, 1, 2]


def test_val_stands_in_for_test(folder: Folder) -> None:
    assert set(load_data(f"imagefolder:{folder(splits=('train', 'val'))}").splits) == {"train", "test"}


def test_three_splits(folder: Folder) -> None:
    data = load_data(f"imagefolder:{folder(splits=('train', 'val', 'test'))}", val_share=0.5)
    assert data.size("train") == data.size("val") == 12


def test_damaged_image_is_named(folder: Folder) -> None:
    root = folder()
    (root / "train" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"train/dog/2\.png is no readable image .*; mend or remove it"):
        load_data(f"imagefolder:{root}")


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_large_image_is_named(workers: int, folder: Folder) -> None:
    root = folder(size=(90, 70))
    path = root / "test" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])
    images = load_data(f"imagefolder:{root}").images("test")
    assert isinstance(images, StreamedImages)
    order = [torch.tensor([0, 1]), torch.tensor([6, 7])]
    with pytest.raises(DataError, match=r"test/dog/2\.png is no readable image [^\n]*$"):
        list(replace(images, workers=workers).batches(order, augment=False, seed=0))


def test_layout(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train: want .*/train/<class>"):
        load_data(f"imagefolder:{tmp_path}")
    root = folder(splits=("train",))
    with pytest.raises(DataError, match=r"no folder .*/test or .*/val"):
        load_data(f"imagefolder:{root}")
    folder(splits=("test",))
    (root / "train" / "ant").mkdir()
    with pytest.raises(DataError, match="train/ant holds no image"):
        load_data(f"imagefolder:{root}")
    (root / "train" / "ant").rmdir()
    write_image(root / "test" / "yak" / "0.png", (10, 8), 1)
    with pytest.raises(DataError, match="test/yak: there are no training images of class 'yak'"):
        load_data(f"imagefolder:{root}")


def test_one_class_is_no_task(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / split / "cat" / "0.png", (8, 8), 1)
    with pytest.raises(DataError, match="holds 1 class folders, want two or more"):
        load_data(f"imagefolder:{tmp_path}")
