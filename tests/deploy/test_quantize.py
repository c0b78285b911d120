"""8-bit files: what they hold, how far they agree, and what is refused before anything is written."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from curlfx.deploy import export_onnx, quantize
from curlfx.deploy.quantize import _compare as compare
from curlfx.errors import ConfigError, DataError, ModelError, OutputError
from curlfx.progress import StepEvent


class Net(nn.Module):
    """Two convolutions and a head; the second input, of the other network, is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x, bias=None):
        x = self.second(self.first(x).relu()).relu()
        scores = self.head(x.mean((2, 3)))
        return scores if bias is None else scores + bias


IMAGES = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return export_onnx(Net(), (IMAGES[:2],), tmp_path_factory.mktemp("float") / "net.onnx").path


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    inputs = (IMAGES[:2], torch.zeros(2, 5))
    return export_onnx(Net(), inputs, tmp_path_factory.mktemp("float") / "net.onnx").path


def held(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


class Steps:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def on_step(self, event: StepEvent) -> None:
        self.seen.append((event.stage, event.step, event.total))


@pytest.mark.slow
def test_a_file_in_8_bits(exported, tmp_path):
    steps = Steps()
    report = quantize(exported, IMAGES.split(8), tmp_path / "int8.onnx", progress=steps)
    assert [one.name for one in tmp_path.iterdir()] == ["int8.onnx"]
    assert [one.name for one in exported.parent.iterdir()] == [exported.name]
    onnx.checker.check_model(str(report.path))
    assert report.size_bytes == report.path.stat().st_size
    assert report.float_bytes == exported.stat().st_size
    assert report.images == 24
    assert 0.9 <= report.top1_agreement <= 1
    assert 0 < report.relative_error < 0.05
    assert steps.seen == [(stage, step, 3) for stage in ("calibrate", "compare") for step in (1, 2, 3)]
    graph = onnx.load(report.path).graph
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= {node.op_type for node in graph.node}
    assert {one.name for one in graph.initializer}.isdisjoint(one.name for one in graph.input)
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_weights_by_hand(exported, tmp_path):
    """Signed and symmetric with a scale per channel; the image unsigned, from its smallest to its largest value."""
    report = quantize(exported, [IMAGES], tmp_path / "int8.onnx")
    before, after = held(exported), held(report.path)
    weight = before["second.weight"]
    scale = np.abs(weight).max((1, 2, 3)) / 127
    np.testing.assert_allclose(after["second.weight_scale"], scale, rtol=1e-6)
    assert after["second.weight_quantized"].dtype == np.int8
    rounded = np.clip(np.rint(weight / scale[:, None, None, None]), -127, 127)
    np.testing.assert_allclose(after["second.weight_quantized"], rounded, atol=1)
    assert np.mean(after["second.weight_quantized"] == rounded) > 0.99
    assert not after["second.weight_zero_point"].any()
    assert after["x_zero_point"].dtype == np.uint8
    low, high = float(IMAGES.min()), float(IMAGES.max())
    np.testing.assert_allclose(after["x_scale"], (high - low) / 255, rtol=1e-5)
    assert int(after["x_zero_point"]) == round(-low / ((high - low) / 255))


def test_7_bits(exported, tmp_path):
    report = quantize(exported, [IMAGES], tmp_path / "int8.onnx", reduce_range=True)
    assert np.abs(held(report.path)["second.weight_quantized"].astype(int)).max() <= 64


@pytest.mark.slow
def test_every_form_of_a_batch_gives_the_same_file(exported, two_inputs, tmp_path):
    wanted = quantize(exported, [IMAGES[:12], IMAGES[12:]], tmp_path / "wanted.onnx")
    for form in ([IMAGES.numpy()], ({"x": half} for half in IMAGES.split(12)), [(IMAGES.double(),)]):
        made = quantize(exported, form, tmp_path / "made.onnx")
        assert made.path.read_bytes() == wanted.path.read_bytes()
        assert made.relative_error == pytest.approx(wanted.relative_error, rel=1e-4)
    zeros = torch.zeros(24, 5)
    first = quantize(two_inputs, [(IMAGES, zeros)], tmp_path / "first.onnx")
    second = quantize(two_inputs, [{"bias": zeros, "x": IMAGES}], tmp_path / "second.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()


class Unprepared(nn.Module):
    """A BatchNorm behind a convolution, as exporters other than ours leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))


def test_a_batch_norm_is_folded_first(tmp_path):
    torch.manual_seed(0)
    weights = Unprepared().eval()
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        onnx.helper.make_node("Relu", ["n"], ["r"]),
        onnx.helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    norm = weights.norm
    tensors = {
        "w": weights.conv.weight,
        "s": norm.weight,
        "b": norm.bias,
        "m": norm.running_mean,
        "v": norm.running_var,
    }
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "foreign",
        [onnx.helper.make_tensor_value_info("x", floats, ["n", 3, 10, 10])],
        [onnx.helper.make_tensor_value_info("y", floats, ["n", 8, 1, 1])],
        [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in tensors.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "foreign.onnx")
    report = quantize(tmp_path / "foreign.onnx", [IMAGES], tmp_path / "int8.onnx")
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(report.path).graph.node}
    assert report.relative_error < 0.05


def test_agreement_by_hand():
    """Two networks whose scores are known: in one of four rows the largest is elsewhere."""

    class Known:
        def __init__(self, values):
            self.values = values

        def run(self, _, feeds):
            return [self.values[feeds["x"]]]

    wanted = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=np.float32)
    given = np.array([[3.0, 4.5], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0]], dtype=np.float32)
    feeds = [{"x": np.array([0, 1])}, {"x": np.array([2, 3])}]
    agreement, error = compare(Known(wanted), Known(given), feeds, None)
    assert agreement == 3 / 4
    assert error == pytest.approx((0.1 + math.sqrt(2) + 0 + 0) / 4)


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([], "no calibration images"),
        (
            [IMAGES[:, :1]],
            r"calibration batch 0: 'x' has shape \(24, 1, 10, 10\); the network takes \(any, 3, 10, 10\)",
        ),
        ([IMAGES, IMAGES[:0]], "calibration batch 1: 'x' has shape"),
        ([{"y": IMAGES}], "calibration batch 0: has y; the network takes x"),
        ([(IMAGES, IMAGES)], "has 2 inputs; the network takes x"),
        ([IMAGES * math.nan], "'x' holds NaN or infinite values"),
        ([{"x": "image.png"}], "'x' is str; want a tensor or an array"),
    ],
)
def test_images_that_do_not_fit(batches, reason, exported, tmp_path):
    with pytest.raises(DataError, match=reason) as caught:
        quantize(exported, batches, tmp_path / "int8.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Named(nn.Module):
    """Takes places in a table, as 32-bit numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.table(ids))


def test_whole_numbers_stay_what_they_are(exported, tmp_path):
    ids = torch.tensor([[1], [9]], dtype=torch.int32)
    path, out = export_onnx(Named(), (ids,), tmp_path / "net.onnx").path, tmp_path / "int8.onnx"
    with pytest.raises(DataError, match="calibration batch 0: 'ids' is float32; the network takes int32; convert it"):
        quantize(path, [ids.float()], out)
    with pytest.raises(DataError, match="'ids' is int64; the network takes int32"):
        quantize(path, [ids.long() + 2**32], out)
    assert not out.exists()
    made = quantize(path, [ids], out).path.read_bytes()
    assert quantize(path, [ids.long()], out).path.read_bytes() == made
    bytes_of_images = (IMAGES * 20).clamp(0, 255).byte()
    made = quantize(exported, [bytes_of_images], out).path.read_bytes()
    assert quantize(exported, [bytes_of_images.float()], out).path.read_bytes() == made


@pytest.mark.slow
def test_files_that_cannot_be_quantised(exported, tmp_path):
    out = tmp_path / "int8.onnx"
    with pytest.raises(ModelError, match="No such file"):
        quantize(tmp_path / "absent.onnx", [IMAGES], out)
    with pytest.raises(ConfigError, match="is the float file itself"):
        quantize(exported, [IMAGES], exported)
    with pytest.raises(OutputError, match="cannot write"):
        quantize(exported, [IMAGES], tmp_path / "absent" / "int8.onnx")
    assert list(tmp_path.iterdir()) == []
    made = quantize(exported, [IMAGES], out)
    kept = made.path.read_bytes()
    with pytest.raises(ModelError, match="is quantised already"):
        quantize(out, [IMAGES], tmp_path / "again.onnx")
    half = export_onnx(Net(), (IMAGES[:2],), tmp_path / "half.onnx", precision="fp16").path
    with pytest.raises(ModelError, match="weights in float16; want the float32 file"):
        quantize(half, [IMAGES], out)
    bare = export_onnx(nn.ELU(), (IMAGES[:2],), tmp_path / "bare.onnx").path
    with pytest.raises(ModelError, match="no operator that onnxruntime can quantise"):
        quantize(bare, [IMAGES], out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bare.onnx", "half.onnx", "int8.onnx"]
    assert out.read_bytes() == kept


def test_a_stopped_calibration_leaves_the_old_file(exported, tmp_path):
    out = tmp_path / "int8.onnx"
    out.write_bytes(b"old")

    class Stop:
        def on_step(self, event: StepEvent) -> None:
            if event.stage == "compare":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(exported, [IMAGES], out, progress=Stop())
    assert [one.name for one in tmp_path.iterdir()] == ["int8.onnx"]
    assert out.read_bytes() == b"old"


def test_silence(exported, tmp_path, capfd, caplog):
    quantize(exported, [IMAGES], tmp_path / "int8.onnx")
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
