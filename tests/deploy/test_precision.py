"""Files in float16: half the size, float32 at both ends, the same function, and no overflow that goes unseen."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript import ir
from torch import nn
from torch.nn import functional

from curlfx.deploy import check_onnx, export_onnx, parity
from curlfx.deploy import export as exporting
from curlfx.deploy.parity import Deviation, ParityReport
from curlfx.deploy.precision import LARGEST, TOLERANCE, nearest, to_float16
from curlfx.deploy.precision import _rounded as rounded
from curlfx.errors import ConfigError, ModelError, OutputError, VerificationError


class Net(nn.Module):
    """Two outputs; operators with and without a float16 form, some of them fixed to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.LayerNorm(16), nn.Linear(16, 5)
        self.register_buffer("hidden", torch.tensor([0.0, torch.finfo(torch.float32).min, 0.0, 0.0, -torch.inf]))

    def forward(self, x):
        x = functional.interpolate(self.conv(x).relu(), scale_factor=2.0, mode="bilinear")
        x = self.norm(x.mean((2, 3)))
        scores = self.head(x)
        return {"scores": (scores + self.hidden).softmax(-1), "best": scores.topk(2).values, "sum": x.cumsum(-1)}


IMAGES = (torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


def types(values) -> set[int]:
    return {value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("single_file", [True, False])
@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_the_same_function_in_half(single_file, dynamic_batch, tmp_path):
    module = Net()
    made = export_onnx(
        module,
        IMAGES,
        tmp_path / "net.onnx",
        precision="fp16",
        single_file=single_file,
        dynamic_batch=dynamic_batch,
    )
    assert made == check_onnx(made.path)
    assert len(list(tmp_path.iterdir())) == (1 if single_file else 2)
    assert made.outputs.keys() == {"scores", "best", "sum"}
    model = onnx.load(made.path)
    assert types(model.graph.input) == types(model.graph.output) == {onnx.TensorProto.FLOAT}
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert set(weights.values()) == {onnx.TensorProto.FLOAT16}
    assert len(weights) >= 2
    report = parity(module, made.path, IMAGES, (1, 3), tolerance=TOLERANCE)
    assert report.passed
    assert report.worst > 1e-6  # it is not float32


@pytest.mark.slow
def test_half_the_size(tmp_path):
    module, x = nn.Linear(300, 300), (torch.randn(2, 300),)
    whole = export_onnx(module, x, tmp_path / "whole.onnx")
    half = export_onnx(module, x, tmp_path / "half.onnx", precision="fp16")
    assert half.size_bytes == pytest.approx(whole.size_bytes / 2, rel=0.01)
    assert half.operators == {**whole.operators, "Cast": 2}


def test_weights_are_rounded_to_the_nearest(tmp_path):
    module, x = nn.Linear(6, 7), (torch.randn(2, 6),)
    made = export_onnx(module, x, tmp_path / "net.onnx", precision="fp16")
    held = {tuple(one.dims): onnx.numpy_helper.to_array(one) for one in onnx.load(made.path).graph.initializer}
    np.testing.assert_array_equal(held[7, 6], module.weight.detach().half().numpy())
    np.testing.assert_array_equal(held[7,], module.bias.detach().half().numpy())


@pytest.mark.slow
def test_a_weight_beyond_the_range_is_named(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        module[2].bias[1] = -70000.0
    with pytest.raises(ModelError, match=r"2\.bias holds 70000, beyond the 65504 of float16"):
        export_onnx(module, IMAGES, tmp_path / "net.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []
    with torch.no_grad():
        module[2].bias[1] = -LARGEST + 100
    assert export_onnx(module, IMAGES, tmp_path / "net.onnx", precision="fp16").operators["Conv"] == 2


class Overflowing(nn.Module):
    """Every weight is in range, what they compute is not; onnxruntime on the CPU computes it in float32."""

    def forward(self, x):
        return (x * 3e4).relu() * 1e-4


@pytest.mark.slow
def test_a_value_beyond_the_range_is_named_although_the_cpu_gets_it_right(tmp_path):
    inputs = (torch.full((2, 3, 4, 4), 3.0),)
    with pytest.raises(ModelError, match=r"on the example inputs 'mul' reaches 90000, beyond the 65504") as caught:
        export_onnx(Overflowing(), inputs, tmp_path / "net.onnx", precision="fp16")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="'input' reaches 100000"):
        export_onnx(nn.ReLU(), (torch.full((2, 3), 1e5),), tmp_path / "net.onnx", precision="fp16")


class Sensitive(nn.Module):
    """What float16 rounds away is all that is left: 1 + x / 2^13 - 1."""

    def forward(self, x):
        return (x / 8192 + 1).sqrt() - 1


def test_what_float16_cannot_compute_is_refused_although_the_cpu_gets_it_right(tmp_path):
    x = (torch.rand(2, 3),)
    with pytest.raises(VerificationError, match=r"rounding puts output 'output' off by 1 of its largest value"):
        export_onnx(Sensitive(), x, tmp_path / "net.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []


class Rounded(nn.Module):
    """float16 by hand: x, a third of it, and their sum, each of 11 digits."""

    def forward(self, x):
        return x * 0.333251953125 + x


def test_the_rehearsal_rounds_as_float16_does(tmp_path):
    x = torch.rand(2, 50, generator=torch.Generator().manual_seed(3))
    made = export_onnx(Rounded(), (x,), tmp_path / "net.onnx")
    rehearsed, watched = rounded(onnx.load(made.path))
    session = onnxruntime.InferenceSession(
        rehearsed.SerializeToString(), unoptimised(), providers=["CPUExecutionProvider"]
    )
    found, *largest = session.run(None, {"x": x.numpy()})
    half = x.half()
    third = half * torch.tensor(0.333251953125).half()
    np.testing.assert_array_equal(found, (third + half).float().numpy())
    assert not np.array_equal(found, Rounded()(x).numpy())
    assert watched == ["mul", "output"]
    assert largest[0] == (half.float() * 0.333251953125).max()


def unoptimised() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(exporting, "TOLERANCE_FP16", 1e-9)
    with pytest.raises(VerificationError, match=r"net\.onnx: output '\w+' at batch . is off by"):
        export_onnx(Net(), IMAGES, path, precision="fp16")
    assert [one.name for one in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"old"


def test_other_precisions(tmp_path):
    with pytest.raises(ConfigError, match="precision = 'int4': want one of fp32, fp16"):
        export_onnx(Net(), IMAGES, tmp_path / "net.onnx", precision="int4")
    with pytest.raises(ModelError, match="nothing in this network is float32"):
        export_onnx(nn.Linear(3, 2).double(), (torch.randn(2, 3).double(),), tmp_path / "net.onnx", precision="fp16")
    with pytest.raises(OutputError):
        export_onnx(Net(), IMAGES, tmp_path / "absent" / "net.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_runs_it_without_a_word(tmp_path, capfd):
    made = export_onnx(Net(), IMAGES, tmp_path / "net.onnx", precision="fp16")
    found = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"]).run(
        None, {"x": IMAGES[0].numpy()}
    )
    assert all(value.dtype == np.float32 for value in found)
    assert capfd.readouterr() == ("", "")


class NormThenHeads(nn.Module):
    """As in ViT: tokens are normalised, put first, and multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(self.norm(x).transpose(0, 1)).transpose(0, 1)


OPEN = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"


def test_onnxruntime_survives_a_norm_before_a_transposed_product(tmp_path, monkeypatch):
    """In a process of its own: it dies when it opens the file that is made without care."""
    monkeypatch.setattr(exporting, "parity", lambda *_, **__: ParityReport(tmp_path, 1.0, (Deviation("y", 1, 0.0),)))
    module, x = NormThenHeads(), (torch.randn(2, 5, 6),)
    made = export_onnx(module, x, tmp_path / "net.onnx", precision="fp16")
    subprocess.run([sys.executable, "-c", OPEN, str(made.path)], check=True, timeout=120)
    assert parity(module, made.path, x, (1, 3), tolerance=TOLERANCE).passed


def weights(path) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def test_rounding_by_hand():
    least = 2.0**-24
    given = [
        1e-9,
        -1e-9,
        least / 2,
        least * 0.51,
        least * 1.5,
        3e-7,
        65519,
        -3.4e38,
        np.inf,
        -np.inf,
        np.nan,
        1 + 2**-11,
    ]
    wanted = [0, 0, 0, least, 2 * least, 5 * least, LARGEST, -LARGEST, np.inf, -np.inf, np.nan, 1]
    np.testing.assert_array_equal(nearest(np.array(given, np.float32)), np.array(wanted, np.float16))
    for value in (1e-12, -1e-12):  # a lone number
        np.testing.assert_array_equal(nearest(np.array([value], np.float32)), [np.copysign(least, value)])
    assert nearest(np.array(0, np.float32)) == 0


def test_weights_below_half_of_the_least_are_0_in_the_file_too(tmp_path):
    """So that the rehearsal speaks of this file: lifted to 6e-8 they would add up to what it never saw."""
    module = nn.Linear(1000, 3)
    with torch.no_grad():
        module.weight.fill_(1e-9)
        module.weight[2] = 1e-7
    made = export_onnx(module, (torch.rand(2, 1000),), tmp_path / "net.onnx", precision="fp16")
    (held,) = (value for value in weights(made.path).values() if value.ndim == 2)
    assert held.dtype == np.float16
    np.testing.assert_array_equal(np.sort(np.unique(held)), np.array([0, 2.0**-23], np.float16))


class Scaled(nn.Module):
    """To length 1; an image of zeros stays one by the epsilon alone."""

    def forward(self, x):
        return functional.normalize(x, eps=1e-12)


def test_an_epsilon_does_not_become_0(tmp_path):
    x = torch.rand(2, 6)
    x[1] = 0
    made = export_onnx(Scaled(), (x,), tmp_path / "net.onnx", precision="fp16")
    assert np.float16(2.0**-24) in weights(made.path).values()
    assert parity(Scaled(), made.path, (x,), tolerance=TOLERANCE).passed


class Hidden(nn.Module):
    """Scores of -40 and a mask of infinities; in float16 -65504 - 40 would be beyond the range."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

    def forward(self, x):
        return (x * 40 + self.mask).softmax(-1)


def test_infinite_masks_stay_infinite(tmp_path):
    x = -torch.ones(2, 3)
    made = export_onnx(Hidden(), (x,), tmp_path / "net.onnx", precision="fp16")
    np.testing.assert_array_equal(weights(made.path)["mask"], np.array([0, -np.inf, 0], np.float16))
    assert parity(Hidden(), made.path, (x,), tolerance=TOLERANCE).worst < 1e-3


class Rows(nn.Module):
    """Places in a table of more rows than float16 can count."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(70000, 2), nn.Linear(2, 3)

    def forward(self, ids):
        return self.head(self.table(ids))


def test_whole_numbers_are_no_float16(tmp_path):
    ids = (torch.tensor([[69999, 1], [65536, 2]]),)
    made = export_onnx(Rows(), ids, tmp_path / "net.onnx", precision="fp16")
    assert onnx.load(made.path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64


def branching(*, as_node: bool) -> ir.Model:
    """``x`` plus 70000 or -70000, each a constant of a branch."""

    def branch(name: str, value: float) -> onnx.GraphProto:
        tensor = onnx.numpy_helper.from_array(np.array([value], np.float32), f"{name}_shift")
        nodes = [onnx.helper.make_node("Add", ["x", tensor.name], [name])]
        if as_node:
            nodes.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        result = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2])
        return onnx.helper.make_graph(nodes, name, [], [result], [] if as_node else [tensor])

    ends = {
        name: onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in [
            ("x", onnx.TensorProto.FLOAT, [2]), ("up", onnx.TensorProto.BOOL, []), ("y", onnx.TensorProto.FLOAT, [2])
        ]
    }  # fmt: skip
    chosen = onnx.helper.make_node("If", ["up"], ["y"], then_branch=branch("a", 7), else_branch=branch("b", -70000))
    graph = onnx.helper.make_graph([chosen], "branching", [ends["x"], ends["up"]], [ends["y"]])
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))


@pytest.mark.parametrize("as_node", [False, True])
def test_a_constant_of_a_branch_is_named(as_node):
    feeds = {"x": np.ones(2, np.float32), "up": np.array(True)}
    with pytest.raises(ModelError, match=r"b_shift holds 70000, beyond"):
        to_float16(branching(as_node=as_node), feeds)
