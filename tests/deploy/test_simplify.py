"""onnxslim: an extra that must not change what a network computes."""

from __future__ import annotations

import importlib.util

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from curlfx.deploy import check_onnx, export_onnx, parity
from curlfx.deploy import simplify as simplifying
from curlfx.errors import ConfigError, ModelError, VerificationError

X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Padded(nn.Module):
    """What onnxruntime gets wrong unless the padding names its axes; and an activation that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        padded = functional.pad(-self.conv(x).abs() - 1, (1, 1, 1, 1))
        return {"pooled": functional.max_pool2d(padded, 3), "mean": x.mean((2, 3))}


def test_without_onnxslim(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnxslim is not installed; pip install 'curlfx\[onnxslim\]'"):
        export_onnx(Padded(), X, tmp_path / "net.onnx", simplify=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_same_function(precision, tmp_path):
    pytest.importorskip("onnxslim", reason="an extra")
    module = Padded()
    plain = export_onnx(module, X, tmp_path / "plain.onnx", precision=precision)
    made = export_onnx(module, X, tmp_path / "net.onnx", precision=precision, simplify=True)
    assert made == check_onnx(made.path)
    assert made.inputs == plain.inputs
    assert made.outputs == plain.outputs
    assert sum(made.operators.values()) <= sum(plain.operators.values())
    graph = onnx.load(made.path).graph
    assert {one.name for one in graph.initializer}.isdisjoint(one.name for one in graph.input)
    assert parity(module, made.path, X, (1, 3), tolerance=1e-2 if precision == "fp16" else 1e-5).passed


@pytest.mark.slow
def test_what_it_breaks_is_not_written(tmp_path, monkeypatch):
    onnxslim = pytest.importorskip("onnxslim", reason="an extra")

    def wrong(model):
        weight = next(one for one in model.graph.initializer if one.name == "conv.bias")
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
        return model

    monkeypatch.setattr(onnxslim, "slim", wrong)
    with pytest.raises(VerificationError, match=r"net\.onnx: output 'pooled'"):
        export_onnx(Padded(), X, tmp_path / "net.onnx", simplify=True)

    def failing(model):
        raise KeyError("no such node\nand more")

    monkeypatch.setattr(onnxslim, "slim", failing)
    with pytest.raises(ModelError, match=r"onnxslim fails on this network: .*no such node"):
        export_onnx(Padded(), X, tmp_path / "net.onnx", simplify=True)
    monkeypatch.setattr(simplifying, "check_simplifier", lambda: None)
    monkeypatch.setattr(onnxslim, "slim", lambda model: None)
    with pytest.raises(ModelError, match="gave no network back"):
        export_onnx(Padded(), X, tmp_path / "net.onnx", simplify=True)
    assert list(tmp_path.iterdir()) == []


class HalfDeaf(nn.Module):
    """Does not listen to its first and last input."""

    def forward(self, before, x, after):
        return x.relu() + 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_inputs_that_nobody_reads_stay(precision, tmp_path):
    pytest.importorskip("onnxslim", reason="an extra")
    inputs = (torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 5))
    plain = export_onnx(HalfDeaf(), inputs, tmp_path / "plain.onnx")
    made = export_onnx(HalfDeaf(), inputs, tmp_path / "net.onnx", precision=precision, simplify=True)
    assert list(made.inputs.items()) == list(plain.inputs.items())
    assert list(made.inputs) == ["before", "x", "after"]


@pytest.mark.slow
def test_what_takes_or_gives_something_else_is_refused(tmp_path, monkeypatch):
    onnxslim = pytest.importorskip("onnxslim", reason="an extra")

    def fewer(model):
        del model.graph.output[1:]
        return model

    monkeypatch.setattr(onnxslim, "slim", fewer)
    with pytest.raises(ModelError, match="changes what this network takes or gives: inputs x, outputs pooled; export"):
        export_onnx(Padded(), X, tmp_path / "net.onnx", simplify=True)

    def unknown(model):
        model.graph.node[0].op_type, model.graph.node[0].domain = "Nothing", "nowhere"
        model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
        return model

    monkeypatch.setattr(onnxslim, "slim", unknown)
    with pytest.raises(ModelError, match=r"net\.onnx: onnxruntime refuses it") as caught:
        export_onnx(Padded(), X, tmp_path / "net.onnx", simplify=True)
    assert "partial" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
