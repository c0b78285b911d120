"""Export: what the file holds, that it computes the same, and that nothing else is left on disk or on the screen."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir
from torch import nn

from curlfx.deploy import check_onnx, export_onnx, parity, prepare
from curlfx.deploy.export import OPSETS
from curlfx.errors import ConfigError, ModelError, OutputError, VerificationError
from curlfx.graph import show, trace


class Net(nn.Module):
    """Two named outputs, a BatchNorm to fold, an attention block, an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        x = nn.functional.hardswish(self.norm(self.conv(x)), inplace=True)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return {"out": self.head(tokens.mean(1)), "aux": x.mean((2, 3))}


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


SMALL = nn.Conv2d(3, 2, 1)
IMAGES = (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(2)),)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    made = export_onnx(net(), IMAGES, path)
    assert made == check_onnx(path)
    return path


@pytest.mark.slow
def test_the_file_holds_constants_and_named_outputs(exported):
    assert list(exported.parent.iterdir()) == [exported]
    path, made = exported, check_onnx(exported)
    assert made.inputs == {"x": ("batch", 3, 6, 6)}
    assert made.outputs == {"out": ("batch", 5), "aux": ("batch", 8)}
    assert made.size_bytes == path.stat().st_size
    assert made.opset == 20
    assert made.operators["Conv"] == 1
    assert "BatchNormalization" not in made.operators
    model = onnx.load(path)
    assert {value.name for value in model.graph.initializer}.isdisjoint(value.name for value in model.graph.input)
    report = parity(net(), path, IMAGES)
    assert report.passed
    assert {(one.output, one.batch) for one in report.deviations} == {("out", 1), ("aux", 1), ("out", 3), ("aux", 3)}


@pytest.mark.slow
def test_a_traced_network_prepared_and_one_image(exported, tmp_path):
    traced = trace(net(), (IMAGES[0][:1],))
    traced.module.train()
    text = show(traced)
    ready = prepare(traced)
    assert "batch_norm" in text
    assert "batch_norm" not in show(ready)
    assert "aten.hardswish_" not in show(ready)
    made = export_onnx(ready.module, (IMAGES[0][:1],), tmp_path / "net.onnx")
    assert made.inputs == {"x": ("batch", 3, 6, 6)}
    assert made.operators == check_onnx(exported).operators
    assert parity(traced.module, made.path, IMAGES, (1, 4)).passed


@pytest.mark.slow
def test_a_fixed_batch(tmp_path):
    made = export_onnx(net(), IMAGES, tmp_path / "net.onnx", dynamic_batch=False)
    assert made.inputs == {"x": (4, 3, 6, 6)}
    report = parity(net(), made.path, IMAGES)
    assert report.passed
    assert {one.batch for one in report.deviations} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_opsets(opset, tmp_path):
    made = export_onnx(net(), IMAGES, tmp_path / "net.onnx", opset=opset)
    assert made.opset == opset
    assert parity(net(), made.path, IMAGES, (2,)).passed


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_opsets_out_of_range(opset, tmp_path):
    with pytest.raises(ConfigError, match=f"opset = {opset}: want one of 18 to 23"):
        export_onnx(net(), IMAGES, tmp_path / "net.onnx", opset=opset)


@pytest.mark.slow
def test_weights_beside_the_graph(exported, tmp_path):
    path = tmp_path / "net.onnx"
    made = export_onnx(net(), IMAGES, path, single_file=False)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert made.size_bytes == sum((tmp_path / name).stat().st_size for name in ("net.onnx", "net.onnx.data"))
    assert made.operators == check_onnx(exported).operators
    assert parity(net(), path, IMAGES).passed


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_silence_and_the_mode_afterwards(tmp_path, capfd, caplog):
    module = net().train()
    with caplog.at_level(logging.DEBUG):
        export_onnx(module, IMAGES, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert module.training
    assert module.norm.training
    assert logging.root.manager.disable == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Namesakes(nn.Module):
    """Outputs called like a buffer, a value inside, and each other's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([2.0, 3.0, 4.0, 5.0]))

    def forward(self, x):
        return {"scale": (x * self.scale).exp(), "mul": x + 1, "relu": x.sigmoid(), "sigmoid": x.relu()}


@pytest.mark.slow
def test_outputs_called_like_something_inside(tmp_path):
    x = (torch.randn(2, 4),)
    made = export_onnx(Namesakes(), x, tmp_path / "net.onnx")
    assert list(made.outputs) == ["scale", "mul", "relu", "sigmoid"]
    assert parity(Namesakes(), made.path, x).worst < 1e-6


class Untranslatable(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x)


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(4, 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Untranslatable(), r"aten\.linalg_eig\.default has no counterpart"),
        (Deciding(), "data-dependent|guard"),
        (FixedBatch(), "dynamic_batch=False"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(module, reason, tmp_path):
    with pytest.raises(ModelError, match=reason) as caught:
        export_onnx(module, (torch.randn(4, 3, 3),), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("single_file", [True, False])
def test_a_folder_that_is_not_there(single_file, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(SMALL, IMAGES, tmp_path / "absent" / "net.onnx", single_file=single_file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("single_file", [True, False])
def test_a_full_disk_keeps_the_old_file(single_file, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        export_onnx(SMALL, IMAGES, path, single_file=single_file)
    assert [one.name for one in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"old"


def test_parity_sees_one_wrong_weight(exported):
    other = net()
    with torch.no_grad():
        other.head.bias[2] += 0.05
    report = parity(other, exported, IMAGES)
    assert not report.passed
    assert {one.output for one in report.deviations if one.relative > report.tolerance} == {"out"}
    with pytest.raises(VerificationError, match=r"output 'out' at batch . is off by"):
        report.require()


@pytest.mark.slow
def test_parity_refuses_another_networks_file(tmp_path):
    made = export_onnx(SMALL, IMAGES, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="1 outputs, the network 2"):
        parity(net(), made.path, IMAGES)
    with pytest.raises(ModelError, match="1 inputs, the network 2"):
        parity(net(), made.path, (*IMAGES, *IMAGES))
    with pytest.raises(ConfigError, match="batch sizes"):
        parity(net(), made.path, IMAGES, (0,))


def test_relative_error():
    from curlfx.deploy.parity import relative_error

    ones = np.ones((2, 2))
    assert relative_error(ones * 4, ones * 5) == 0.25
    assert relative_error(ones * 0, ones * 0) == 0
    assert relative_error(ones, np.ones((2, 1))) == np.inf
    assert relative_error(ones, ones * np.nan) == np.inf


def test_a_file_that_someone_damaged(exported, tmp_path):
    path = tmp_path / "net.onnx"
    model = onnx.load(exported)
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="checker refuses"):
        check_onnx(path)
