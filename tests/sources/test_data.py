"""Data specifications: what they load, and one clear error for each way to get them wrong."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from curlfx.errors import DataError, ModelError
from curlfx.models import digits as digits_net
from curlfx.models import resnet20
from curlfx.sources import DataSource, Normalisation, check_fit, load_data
from curlfx.sources.images import ArrayImages

FACTORY = """
import torch
from torch.utils.data import TensorDataset
from curlfx.sources import load_data

def part(n, classes=3, shape=(2, 4, 4)):
    images = torch.arange(n).float().view(-1, *[1] * len(shape)).expand(n, *shape)
    return TensorDataset(images, torch.arange(n) % classes)

def sets():
    return {"train": part(9), "test": part(6)}

def ready():
    return load_data("random", limit=20)

def no_test():
    return {"train": part(9)}

def numbers():
    return 3

def broken():
    raise ValueError("disk is gone")

def of_two_sizes():
    return {"train": part(9), "test": [(torch.zeros(2, 4, 4), 0), (torch.zeros(2, 5, 4), 1)]}

def not_a_number():
    return {"train": part(9), "test": [(torch.full((2, 4, 4), float("nan")), 0)]}

def flat():
    return {"train": part(9, shape=(4,)), "test": part(9, shape=(4,))}

def whole():
    return {"train": TensorDataset(torch.ones(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)), "test": part(4)}

def negative():
    return {"train": TensorDataset(torch.ones(4, 1, 2, 2), torch.arange(4) - 1), "test": part(4)}
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "sets.py"
    path.write_text(FACTORY)
    return path


def test_digits() -> None:
    data = load_data("digits")
    assert (data.shape, data.num_classes, data.size("train"), data.size("test")) == ((1, 8, 8), 10, 1347, 450)
    images = torch.cat([batch for batch, _ in data.loader("train", 64)])
    assert images.mean().abs() < 0.02
    assert images.std() == pytest.approx(1, abs=0.02)
    counts = data.images("test").labels.bincount()
    assert counts.min() >= 40


def test_digits_split_is_fixed_and_disjoint() -> None:
    first, second = load_data("digits"), load_data("digits")
    train, test = (first.images(name) for name in ("train", "test"))  # type: ignore[arg-type]
    assert isinstance(train, ArrayImages)
    assert isinstance(test, ArrayImages)
    again = second.images("train")
    assert isinstance(again, ArrayImages)
    assert torch.equal(train.pixels, again.pixels)
    both = torch.cat([train.pixels, test.pixels]).flatten(1)
    assert len(both) == 1797
    assert len(both.unique(dim=0)) == 1797


def test_random_needs_nothing() -> None:
    data = load_data("random", shape=(5, 7, 9), limit=30)
    assert data.shape == (5, 7, 9)
    assert data.size("train") == 30
    assert data.proxy(4).shape == (4, 5, 7, 9)


def test_small_data_for_a_network_that_wants_large_images() -> None:
    data = load_data("digits", shape=(3, 24, 20), limit=20)
    images = data.proxy(4)
    assert images.shape == (4, 3, 24, 20)
    assert torch.equal(images[:, 0], images[:, 2])
    check_fit(resnet20(), data)


def test_normalisation_and_limit() -> None:
    plain = load_data("digits", normalisation=Normalisation((0.0,), (1.0,), scale=16.0), limit=100)
    images = plain.proxy(100)
    assert images.min() == 0
    assert images.max() == 1
    assert plain.images("train").labels.bincount().tolist() == [10] * 10


def test_val_share() -> None:
    data = load_data("digits", val_share=0.2)
    assert data.size("train") + data.size("val") == 1347
    assert data.size("val") == pytest.approx(0.2 * 1347, abs=5)
    assert data.size("test") == 450


def test_proxy_is_random_training_images() -> None:
    data = load_data("digits")
    assert torch.equal(data.proxy(16, seed=1), data.proxy(16, seed=1))
    assert not torch.equal(data.proxy(16, seed=1), data.proxy(16, seed=2))
    assert len(data.proxy(10**6)) == 1347


def test_classes_of_the_proxy_are_those_of_its_images() -> None:
    data = load_data("digits")
    pairs = [pair for batch in data.loader("train", 64) for pair in zip(*batch, strict=True)]
    by_image = {image.numpy().tobytes(): int(label) for image, label in pairs}
    images, classes = data.proxy(16, seed=1), data.proxy_classes(16, seed=1)
    assert classes.tolist() == [by_image[image.numpy().tobytes()] for image in images]
    assert len(set(classes.tolist())) > 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("imagenet", "want one of digits, imagefolder, cifar10, fashion-mnist, random, or file.py:factory"),
        ("imagefolder:/no/such/folder", "no folder /no/such/folder"),
        ("imagefolder", "want imagefolder:DIR"),
        ("cifar10:/no/such/folder", "cifar-10-batches-py"),
        ("cifar10", "want cifar10:DIR"),
        ("fashion-mnist:/no/such/folder", "FashionMNIST/raw"),
        ("nowhere.py:sets", "no file nowhere.py"),
        ("{sets}:set", "has no 'set'; did you mean 'sets'"),
        ("{sets}:no_test", "its factory returned dict; want a DataSource, or torch data sets by split"),
        ("{sets}:numbers", "its factory returned int"),
        ("{sets}:broken", r"its factory failed: ValueError: disk is gone \(sets.py:23\)"),
        ("{sets}:flat", r"an image has shape \(4,\), want \(C, H, W\)"),
        ("{sets}:whole", "image 0 is torch.uint8, want a float tensor"),
        ("{sets}:negative", "want one number from 0"),
    ],
)
def test_refuses(spec: str, message: str, factories: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_data(spec.format(sets=factories))


@pytest.mark.parametrize("options", [{"limit": 0}, {"val_share": 1.0}, {"val_share": -0.1}, {"val_share": 1e-9}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(options))):
        load_data("digits", **options)  # type: ignore[arg-type]


def test_no_val_images() -> None:
    with pytest.raises(DataError, match="data digits has no val images, only train, test"):
        load_data("digits").loader("val", 8)


def test_factory_of_torch_data_sets(factories: Path) -> None:
    data = load_data(f"{factories}:sets", limit=4)
    assert (data.shape, data.num_classes, data.size("train")) == ((2, 4, 4), 3, 4)
    images, labels = next(iter(data.loader("test", 6)))
    assert torch.equal(images[:, 0, 0, 0].long() % 3, labels)
    with pytest.raises(DataError, match=r"shape \(2, 4, 4\), the network wants \(3, 8, 8\)"):
        load_data(f"{factories}:sets", shape=(3, 8, 8))


def test_factory_of_a_source(factories: Path) -> None:
    assert isinstance(load_data(f"{factories}:ready"), DataSource)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = generator.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match="not as published"):  # the checksums are not those of the published files
        load_data(f"cifar10:{tmp_path}")
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_data(f"cifar10:{tmp_path}")
    assert (data.shape, data.size("train"), data.size("test"), data.classes) == ((3, 32, 32), 50, 10, tuple(names))
    images = data.images("test")
    assert isinstance(images, ArrayImages)
    assert torch.equal(images.pixels[9].flatten(), torch.from_numpy(pixels[9]))
    with pytest.raises(DataError, match="has 3 colour channels, the network wants 1"):
        load_data(f"cifar10:{tmp_path}", shape=(1, 32, 32))


def test_fashion_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = np.arange(count * 784, dtype=np.int64).astype(np.uint8)
        for kind, header, body in (
            ("images-idx3", (2051, count, 28, 28), pixels.tobytes()),
            ("labels-idx1", (2049, count), bytes(i % 10 for i in range(count))),
        ):
            content = np.array(header, ">i4").tobytes() + body
            (raw / f"{part}-{kind}-ubyte").write_bytes(content)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    data = load_data(f"fashion-mnist:{tmp_path}")
    assert (data.shape, data.size("train"), data.size("test")) == ((1, 28, 28), 20, 10)
    assert data.classes[9] == "Ankle boot"


def test_fit() -> None:
    data = load_data("digits")
    model = digits_net().train()
    check_fit(model, data)
    assert model.training
    with pytest.raises(DataError, match="data digits has 10 classes, the head of the network gives 7"):
        check_fit(digits_net(num_classes=7), data)
    with pytest.raises(ModelError, match=r"does not take images of shape \(1, 8, 8\)"):
        check_fit(resnet20(), data)
    with pytest.raises(ModelError, match=r"gives shape \(2, 64, 8, 8\) for two images"):
        check_fit(digits_net().conv1, data)


def test_moves_to_a_device() -> None:
    data = load_data("digits", limit=10).to("meta")
    images, labels = next(iter(data.loader("train", 4)))
    assert images.device.type == labels.device.type == "meta"


def test_torch_data_sets_need_labels_that_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text("made = {'train': [(1, 'cat')], 'test': [(1, 'dog')]}\n")
    with pytest.raises(DataError, match="want pairs"):
        load_data(f"{tmp_path / 'named.py'}:made")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("of_two_sizes", r"image 1 has shape \(2, 5, 4\), the first one \(2, 4, 4\)"),
        ("not_a_number", "image 0 holds NaN"),
    ],
)
def test_images_that_a_batch_cannot_hold(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "sets.py").write_text(FACTORY)
    source = load_data(f"{tmp_path / 'sets.py'}:{name}")
    with pytest.raises(DataError, match=match):
        list(source.loader("test", 2))
