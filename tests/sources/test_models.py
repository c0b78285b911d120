"""Model specifications: what they build, and one clear error for each way to get them wrong."""

import importlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from curlfx.errors import ModelError, WeightsError
from curlfx.models import CifarResNet
from curlfx.sources import class_scores, input_shape, load_model
from curlfx.sources.factory import load_attribute

FACTORY = """
from dataclasses import dataclass
from beside import WIDTH
from torch import nn

@dataclass
class Options:
    classes: int

def net(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, num_classes))

net.input_shape = (3, 4, 4)
own_head = lambda: nn.Linear(2, 2)
ready = nn.Linear(3, 3)
number = 3

def broken():
    raise ValueError("no such width")

def nothing():
    return None
"""

OPERATOR = """
import torch

@torch.library.custom_op("curlfx_test_models::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@doubled.register_fake
def _(x):
    return torch.empty_like(x)

class Doubling(torch.nn.Module):
    def forward(self, x):
        return torch.ops.curlfx_test_models.doubled(x)
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 48\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return path


def test_ours() -> None:
    model = load_model("curlfx:resnet20", num_classes=7)
    assert isinstance(model, CifarResNet)
    assert model.linear.out_features == 7
    assert not model.training


def test_torchvision_with_a_head_for_the_data() -> None:
    assert class_scores(load_model("torchvision:resnet18", num_classes=5), (3, 32, 32)) == 5


def test_torchvision_segmentation_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("download"))
    load_model("torchvision:lraspp_mobilenet_v3_large")


def test_file_with_neighbours(factories: Path) -> None:
    assert class_scores(load_model(f"{factories}:net", num_classes=4), (3, 4, 4)) == 4
    assert class_scores(load_model(f"{factories}:net"), (3, 4, 4)) == 10
    assert isinstance(load_model(f"{factories}:own_head", num_classes=4), nn.Linear)
    assert isinstance(load_model(f"{factories}:ready"), nn.Linear)


def test_a_file_is_executed_every_time_so_a_ready_network_is_new_and_follows_from_the_seed(
    factories: Path,
) -> None:
    input_shape(f"{factories}:ready")
    made = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        made.append(load_model(f"{factories}:ready").weight)
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made[1], made[2])
    made[1].data.zero_()
    assert made[2].abs().min() > 0


def test_a_file_with_operators_is_executed_once_and_again_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(OPERATOR)
    first = load_attribute(f"{path}:Doubling", ModelError)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "nets.py").write_text(FACTORY.replace("from beside import WIDTH", "WIDTH = 48"))
    load_attribute(f"{tmp_path / 'other' / 'nets.py'}:net", ModelError)
    assert load_attribute(f"{path}:Doubling", ModelError) is first
    assert pickle.loads(pickle.dumps(first())).__class__ is first
    traced = torch.export.export(first(), (torch.ones(2),)).module()
    assert load_model(f"{path}:Doubling")(torch.ones(2)).tolist() == traced(torch.ones(2)).tolist() == [2.0, 2.0]
    path.write_text(OPERATOR + "depth, ready = 2, Doubling()\n")
    assert load_attribute(f"{path}:depth", ModelError) == 2
    assert load_attribute(f"{path}:Doubling", ModelError) is not first
    with pytest.raises(ModelError, match="executed once; name a function that returns a new network"):
        load_model(f"{path}:ready")


def test_a_file_with_operators_that_the_program_has_imported_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_operator.py").write_text(OPERATOR.replace("doubled", "doubled_too"))
    (tmp_path / "alias.py").symlink_to(tmp_path / "with_operator.py")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("with_operator")
    assert load_attribute(f"{tmp_path / 'alias.py'}:Doubling", ModelError) is module.Doubling


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)

    def unreadable(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(ModelError, match=r"nets\.py cannot be read: "):
        load_model(f"{path}:net")


def test_module_in_the_working_folder(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factories.parent)
    assert class_scores(load_model("nets:net"), (3, 4, 4)) == 10


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "want torchvision:NAME, .*; did you mean torchvision:resnet18"),
        ("digits", "did you mean curlfx:digits"),
        ("curlfx:resnet2", "did you mean .*'resnet20'"),
        ("curlfx:", "want torchvision:NAME"),
        ("torchvision:resnet19", "no such network; did you mean 'resnet18'"),
        ("nowhere.py:net", "no file nowhere.py"),
        ("no_such_package.nets:net", "module 'no_such_package.nets' does not import: ModuleNotFoundError"),
        ("torch.nn:Linea", "torch.nn has no 'Linea'; did you mean 'Linear'"),
        ("torch.nn:Linear", "its factory failed: TypeError"),
        ("math:pi", "is float, want a function that returns a torch.nn.Module"),
        ("{nets}:broken", r"its factory failed: ValueError: no such width \(nets.py:19\)"),
        ("{nets}:nothing", "its factory returned NoneType, want a torch.nn.Module"),
    ],
)
def test_refuses(spec: str, message: str, factories: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(spec.format(nets=factories))


def test_file_that_does_not_import(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("x = 1\nimport no_such_package\n")
    with pytest.raises(ModelError, match=r"does not import: ModuleNotFoundError: .* \(bad.py:2\)"):
        load_model(f"{path}:net")
    path.write_text("def net(:\n")
    with pytest.raises(ModelError, match="does not import: SyntaxError"):
        load_model(f"{path}:net")


def test_published_weights_of_a_network_that_has_none(factories: Path) -> None:
    with pytest.raises(ModelError, match="give weights=FILE"):
        load_model("curlfx:resnet20", weights="default")
    with pytest.raises(ModelError, match="give weights=FILE"):
        load_model(f"{factories}:net", weights="default")


def test_weights_are_checked(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file"):
        load_model("curlfx:resnet20", weights=tmp_path / "none.safetensors")


def test_input_shapes(factories: Path) -> None:
    assert input_shape("curlfx:digits") == (1, 8, 8)
    assert input_shape("curlfx:resnet56") == (3, 32, 32)
    assert input_shape("torchvision:resnet18") == (3, 224, 224)
    assert input_shape("torchvision:inception_v3") == (3, 299, 299)
    assert input_shape(f"{factories}:net") == (3, 4, 4)
    assert input_shape(f"{factories}:own_head") is None
    with pytest.raises(ModelError, match="no such network"):
        input_shape("torchvision:resnet19")


def test_timm() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    assert class_scores(load_model("timm:resnet10t", num_classes=3), (3, 64, 64)) == 3
    assert input_shape("timm:resnet10t") == (3, 176, 176)
    with pytest.raises(ModelError, match=r"did you mean .*'resnet10t'"):
        load_model("timm:resnet10s")
