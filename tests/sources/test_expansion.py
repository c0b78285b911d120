"""Six versions of an image: each against a slow or independent rendering, all of them stable."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curlfx.errors import DataError, OutputError
from curlfx.sources import DataSource, from_datasets, load_data, offline, write_expanded
from curlfx.sources.expansion import (
    BLACK,
    DRAWS,
    VERSIONS,
    Expansion,
    cut_out,
    remapped,
    rotated,
    shuffled_patches,
)
from curlfx.sources.images import ArrayImages, Augmentation, Loader, Normalisation
from tests.killed import Killed

sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angles(*degrees: int) -> torch.Tensor:
    """Draws that make `rotated` turn by these angles."""
    table = torch.zeros(len(degrees), DRAWS, dtype=torch.float64)
    table[:, 0] = (torch.tensor(degrees) + 0.5) / 361
    return table


def tiles(image: torch.Tensor, count: int) -> list[tuple[float, ...]]:
    tall, wide = image.shape[0] // count, image.shape[1] // count
    return [
        tuple(image[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide].flatten().tolist())
        for row, column in itertools.product(range(count), repeat=2)
    ]


@given(sizes, st.sampled_from([2, 3, 4]), st.integers(0, 99))
def test_patches_are_the_same_in_another_order(size: tuple[int, int], count: int, seed: int) -> None:
    height, width = size
    image = torch.arange(height * width, dtype=torch.float32).view(height, width)
    places = shuffled_patches(draws(3, seed), height, width, count=count)
    assert all(torch.equal(row.sort().values, torch.arange(height * width)) for row in places)
    if height < count or width < count:
        assert all(torch.equal(row, torch.arange(height * width)) for row in places)
        return
    for shuffled in remapped(image[None, None].expand(3, 1, -1, -1), places)[:, 0]:
        assert Counter(tiles(shuffled, count)) == Counter(tiles(image, count))
        inside = (slice(None, height // count * count), slice(None, width // count * count))
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[inside] = False
        assert torch.equal(shuffled[outside], image[outside])


def test_patches_come_in_every_order() -> None:
    places = shuffled_patches(draws(2000), 2, 2, count=2)
    orders = Counter(tuple(row.tolist()) for row in places)
    assert len(orders) == 24
    assert min(orders.values()) > 40


@given(sizes, st.integers(0, 99))
def test_one_box_is_cut_out(size: tuple[int, int], seed: int) -> None:
    height, width = size
    for row, drawn in zip(cut_out(draws(4, seed), height, width), draws(4, seed), strict=True):
        gone = (row == BLACK).view(height, width)
        share = 0.2 + 0.3 * float(drawn[0])
        tall, wide = int(share * height), int(share * width)
        assert int(gone.sum()) == tall * wide
        if tall * wide:
            assert (int(gone.any(1).sum()), int(gone.any(0).sum())) == (tall, wide)
        assert torch.equal(row[row != BLACK], torch.arange(height * width)[~gone.flatten()])


def test_the_box_is_anywhere() -> None:
    gone = cut_out(draws(3000), 10, 10) == BLACK
    assert bool(gone.any(0).all())
    assert 0.2**2 * 0.6 < float(gone.float().mean()) < 0.5**2


@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 9))
def test_quarter_turns_are_exact(size: int, quarter: int, seed: int) -> None:
    image = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(seed))
    turned = remapped(image, rotated(angles(90 * quarter), size, size))
    assert torch.equal(turned, image.rot90(quarter, (2, 3)))


@pytest.mark.parametrize("angle", [0, 7, 45, 133, 200, 311, 360])
def test_rotation_is_that_of_pillow(angle: int) -> None:
    image = torch.randint(1, 256, (21, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = remapped(image[None, None], rotated(angles(angle), 21, 32))[0, 0]
    expected = torch.from_numpy(np.array(Image.fromarray(image.numpy()).rotate(angle)))
    assert float((found == expected).float().mean()) > 0.97  # the two may round a place between pixels differently


def test_every_degree_is_an_angle_of_its_own() -> None:
    turned = rotated(angles(*range(361)), 130, 130)
    assert len({row.numpy().tobytes() for row in turned}) == 360  # 0 and 360 degrees are one
    ends = torch.zeros(2, DRAWS, dtype=torch.float64)
    ends[1] = 1 - 2**-53  # the largest number that may be drawn
    assert torch.equal(*rotated(ends, 130, 130))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (4, 12, 12), (2, 1, 3), (5, 3, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int16])
def test_any_channels_size_and_dtype(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    pixels = torch.randint(1, 100, (4, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    expansion = Expansion(4, seed=3)
    numbers = torch.arange(expansion.total)
    made = expansion.apply(pixels.repeat(6, 1, 1, 1), numbers)
    assert (made.shape, made.dtype) == ((24, *shape), dtype)
    assert torch.equal(made[:4], pixels)
    for channel in range(1, shape[0]):  # the same places in every channel
        alone = expansion.apply(pixels[:, channel : channel + 1].repeat(6, 1, 1, 1), numbers)
        assert torch.equal(alone[:, 0], made[:, channel])


def test_a_version_is_the_same_whenever_it_is_asked_for() -> None:
    pixels = torch.randint(256, (10, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expansion = Expansion(10, seed=1)
    whole = expansion.apply(pixels.repeat(6, 1, 1, 1), torch.arange(60))
    some = torch.tensor([59, 0, 23, 23, 41, 12])
    torch.rand(5)
    assert torch.equal(expansion.apply(pixels[some % 10], some), whole[some])
    other = Expansion(10, seed=2).apply(pixels.repeat(6, 1, 1, 1), torch.arange(60))
    differ = [not torch.equal(ours, theirs) for ours, theirs in zip(whole, other, strict=True)]
    assert not any(differ[:10])
    assert sum(differ[10:]) > 45
    numbered = torch.arange(144).view(1, 1, 12, 12).expand(60, -1, -1, -1)
    places = expansion.apply(numbered, torch.arange(60))[20:]
    assert len({place.numpy().tobytes() for place in places}) == 40  # no two versions (of so many) are drawn alike


def arrays(count: int = 6, channels: int = 3) -> DataSource:
    pixels = torch.randint(256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normalisation = Normalisation((0.5,) * channels, (0.25,) * channels)
    images = ArrayImages(pixels, torch.arange(count) % 3, normalisation, Augmentation(pad=1, flip=True))
    return DataSource("arrays", ("a", "b", "c"), (channels, 8, 8), {"train": images, "test": images})


def test_positions_name_the_same_image_in_every_epoch() -> None:
    data = arrays().expanded(seed=4)
    assert data.size("train") == 36
    assert data.size("test") == 6
    plain = torch.cat([images for images, _ in data.loader("train", 5)])
    assert torch.equal(plain[:6], torch.cat([images for images, _ in arrays().loader("train", 5)]))
    for epoch in (0, 1, 5):
        loader = data.loader("train", 5, seed=2, shuffle=True, indexed=True)
        seen = []
        for images, labels, positions in loader.epoch(epoch):
            assert torch.equal(images, plain[positions])
            assert torch.equal(labels, positions % 6 % 3)
            seen += positions.tolist()
        assert sorted(seen) == list(range(36))
        assert seen != sorted(seen)


def test_random_changes_come_on_top_of_the_version() -> None:
    """What augmentation does with the expanded images is what it does with the same images stored expanded."""
    images = arrays().images("train")
    assert isinstance(images, ArrayImages)
    numbers = torch.arange(36)
    stored = ArrayImages(
        Expansion(6, 4).apply(images.pixels.repeat(6, 1, 1, 1), numbers), images.labels.repeat(6),
        images.normalisation, images.augmentation,
    )  # fmt: skip
    wanted = Loader(stored, 7, seed=3, augment=True, shuffle=True)
    found = arrays().expanded(4).loader("train", 7, seed=3, augment=True, shuffle=True)
    for (a, b), (c, d) in zip(wanted.epoch(2), found.epoch(2), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_a_subset_of_versions() -> None:
    data = arrays().expanded()
    plain = torch.cat([images for images, _ in data.loader("train", 36)])
    some = data.images("train").subset(torch.tensor([30, 2, 14]))
    images, labels = next(iter(some.batches([torch.tensor([2, 0])], augment=False, seed=0)))
    assert torch.equal(images, plain[[14, 30]])
    assert labels.tolist() == [2, 0]


def folder_of(path: Path, side: int, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for name in classes:
            (path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (side, side + 8, 3), np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{index}.png")
    return path


def test_large_images_are_expanded_before_they_are_cropped(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "large", 80)
    data = load_data(f"imagefolder:{root}", shape=(3, 72, 72)).expanded(seed=1)
    plain = torch.cat([images for images, _ in data.loader("train", 10)])
    again = dict(zip(*(torch.cat(parts).tolist() for parts in ([torch.arange(36)], [torch.arange(36)])), strict=True))
    assert len(plain) == len(again) == 36
    own = load_data(f"imagefolder:{root}", shape=(3, 72, 72))
    assert torch.equal(plain[:6], torch.cat([images for images, _ in own.loader("train", 10)]))
    assert not torch.equal(plain[6:12], plain[:6])
    for images, labels, positions in data.loader("train", 10, seed=5, shuffle=True, indexed=True).epoch(1):
        assert torch.equal(images, plain[positions])
        assert torch.equal(labels, positions % 6 // 3)
    written = tmp_path / "written"
    assert write_expanded(own, written, seed=1) == 36 + 2
    stored = load_data(f"imagefolder:{written}", shape=(3, 72, 72))
    found = {
        tuple(image.flatten().tolist()): int(label)
        for images, labels in stored.loader("train", 10)
        for image, label in zip(images, labels, strict=True)
    }
    for position, image in enumerate(plain):
        assert found[tuple(image.flatten().tolist())] == position % 6 // 3


@pytest.mark.slow
def test_mild_changes_leave_most_of_a_large_image_in_view(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "large", 80)
    data = load_data(f"imagefolder:{root}", shape=(3, 72, 72))

    def means(augment: object) -> torch.Tensor:
        loader = data.loader("train", 6, augment=augment)  # type: ignore[arg-type]
        return torch.stack([next(iter(loader.epoch(epoch)))[0].std((1, 2, 3)) for epoch in range(8)])

    # Noise that is magnified by a crop of a few pixels keeps its contrast, the whole image scaled down loses it.
    assert means("mild").std() < means(augment=True).std()
    assert means(augment=False).std(0).max() == 0
    assert means("mild").std(0).min() > 0


def test_images_of_a_torch_data_set() -> None:
    images = torch.randn(6, 2, 5, 4, generator=torch.Generator().manual_seed(0))

    part = torch.utils.data.TensorDataset(images, torch.arange(6) % 3)
    data = from_datasets({"train": part, "test": part}).expanded(seed=7)
    found = torch.cat([batch for batch, _ in data.loader("train", 9)])
    assert torch.equal(found, Expansion(6, 7).apply(images.repeat(6, 1, 1, 1), torch.arange(36)))
    with pytest.raises(DataError, match="train: only pixels in memory or in files can be written"):
        write_expanded(data, Path("nowhere"))


@pytest.mark.parametrize("spec", ["digits", "random"])
def test_written_images_are_those_of_the_expanded_data(spec: str, tmp_path: Path) -> None:
    plain = Normalisation((0.0,), (1.0,)) if spec == "digits" else None
    data = load_data(spec, limit=20)
    assert write_expanded(data, tmp_path / "out", seed=3) == 20 * 6 + 20
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shape = data.shape
    stored = load_data(f"imagefolder:{tmp_path / 'out'}", shape=shape, normalisation=plain)
    assert stored.size("train") == 120
    assert stored.size("test") == 20
    assert stored.images("train").labels.bincount().tolist() == [12] * 10
    train = data.images("train")
    assert isinstance(train, ArrayImages)
    pixels = (train.pixels.float() * (255 / train.normalisation.scale)).round().to(torch.uint8)
    expected = Expansion(20, 3).apply(pixels.repeat(6, 1, 1, 1), torch.arange(120))
    labels = train.labels.repeat(6)
    here = stored.images("train")
    assert isinstance(here, ArrayImages)
    wanted = Counter((int(label), image.numpy().tobytes()) for image, label in zip(expected, labels, strict=True))
    assert wanted == Counter(
        (int(label), image.contiguous().numpy().tobytes())
        for image, label in zip(here.pixels, here.labels, strict=True)
    )


def test_writing_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, written, write = arrays(), [], offline._write

    def write_some(path: Path, pixels: torch.Tensor) -> None:
        if len(written) == 17:
            raise Killed
        write(path, pixels)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(offline, "_write", write_some)
        with pytest.raises(Killed):
            write_expanded(data, tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=r"was begun with other data \(seed differs\)"):
        write_expanded(data, tmp_path / "out", seed=2)
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial").rglob("*.png")}
    assert len(first) == 17
    assert write_expanded(data, tmp_path / "out", seed=1) == 42
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").rglob("*.png")}
    assert len(files) == 36
    assert first.items() <= files.items()
    assert write_expanded(data, tmp_path / "whole", seed=1) == 42
    for path in (tmp_path / "whole").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
    with pytest.raises(OutputError, match="there is something already"):
        write_expanded(data, tmp_path / "out", seed=1)


def test_folders_sort_as_the_labels_do() -> None:
    assert offline._folder_names(("a", "b")) == ["a", "b"]
    assert offline._folder_names(("T-shirt/top", "Bag")) == ["0-T-shirt-top", "1-Bag"]
    many = offline._folder_names(tuple(str(label) for label in range(11)))  # "10" sorts before "2"
    assert many == sorted(many)
    assert many[10] == "10-10"


def test_what_no_file_can_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 channels fit no PNG file"):
        write_expanded(arrays(channels=2), tmp_path / "out")
    with pytest.raises(DataError, match=r"ExpandedArray cannot be expanded \(again\)"):
        arrays().expanded().expanded()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_expanded(arrays(), tmp_path / "file" / "out")


def test_six_versions() -> None:
    assert list(VERSIONS) == ["original", "patches-2", "patches-3", "patches-4", "cut-out", "rotation"]


def test_train_limit_leaves_the_other_splits() -> None:
    data = load_data("digits", train_limit=50, val_share=0.2)
    assert data.images("train").labels.bincount().tolist() == [5] * 10
    assert data.size("test") == 450
    assert data.size("val") == load_data("digits", val_share=0.2).size("val")
    assert load_data("digits", limit=100, train_limit=20).size("test") == 100
    with pytest.raises(DataError, match="train_limit=0, want 1 or more"):
        load_data("digits", train_limit=0)
