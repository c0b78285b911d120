"""The CIFAR networks: the numbers of the paper, the key names of published weights, and their accuracy."""

import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from curlfx.models import MODELS, CifarResNet, resnet20
from curlfx.models.resnet_cifar import SubsampledIdentity
from curlfx.sources import load_data, load_model

BLOCK = ("conv1.weight", *(f"{bn}.{key}" for bn in ("bn1", "bn2") for key in ("weight", "bias")), "conv2.weight")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_size_is_the_papers(name: str, parameters: int) -> None:
    """Table 6 of arXiv:1512.03385 gives 0.27M, 0.46M, 0.66M, 0.85M and 1.7M."""
    model = MODELS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == int(name.removeprefix("resnet"))


def test_macs() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        resnet20().eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() // 2 == 40_551_040


def test_parameter_names() -> None:
    names = {name for name, _ in resnet20().named_parameters()}
    blocks = {f"layer{stage}.{block}.{key}" for stage in (1, 2, 3) for block in (0, 1, 2) for key in BLOCK}
    assert names == {"conv1.weight", "bn1.weight", "bn1.bias", "linear.weight", "linear.bias"} | blocks


def test_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    x = torch.randn(2, 3, 5, 6)
    y = SubsampledIdentity(stride=2, padding=2)(x)
    assert y.shape == (2, 7, 3, 3)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()


def test_classes() -> None:
    assert CifarResNet(1, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_weights_fit(name: str, shared_data: Path) -> None:
    load_model(f"curlfx:{name}", weights=shared_data / f"{name}-cifar10-jpeg.safetensors")


@pytest.mark.nightly
def test_published_weights_reach_their_accuracy(shared_data: Path, tmp_path: Path) -> None:
    archive = shared_data / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} beside the weights")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    root = next(path.parent for path in tmp_path.rglob("train") if path.is_dir())
    data = load_data(f"imagefolder:{root}")
    model = load_model("curlfx:resnet20", weights=shared_data / "resnet20-cifar10-jpeg.safetensors")
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.loader("test", 250))
    assert hits / data.size("test") == pytest.approx(0.8854, abs=5e-4)
