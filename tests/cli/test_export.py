"""``export`` in float16 and through onnxslim, and ``quantize``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from tests.cli.conftest import Program

NETWORKS = Path(__file__).parent.parent / "run" / "tiny_networks.py"
TINY = (f"{NETWORKS}:residual", "--shape", "1,8,8")


def exported(program: Program, *options: object) -> Path:
    done = program("export", *TINY, "--out", "net.onnx", *options)
    assert done.code == 0, done.err
    return Path("net.onnx")


def refused(done, *texts: str) -> None:
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    assert line.startswith("error: ")
    for text in texts:
        assert text in line


@pytest.mark.slow
def test_float16(program: Program) -> None:
    model = onnx.load(exported(program, "--precision", "fp16"))
    assert {one.data_type for one in model.graph.initializer if len(one.dims) > 1} == {onnx.TensorProto.FLOAT16}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    done = program("export", *TINY, "--precision", "int4")
    assert done.code == 2
    assert "fp16" in done.err


@pytest.mark.slow
def test_onnxslim(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxslim", reason="an extra")
    assert onnx.load(exported(program, "--onnxslim", "--static-batch")).graph.input[0].type.tensor_type.shape.dim[0]
    Path("net.onnx").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(program("export", *TINY, "--onnxslim"), "onnxslim is not installed", "pip install 'curlfx[onnxslim]'")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_quantize(program: Program) -> None:
    model = exported(program)
    done = program("quantize", model, "--data", "digits", "--images", 40)
    assert done.code == 0, done.err
    header, numbers, path = done.out.splitlines()
    assert header.split() == ["images", "top-1", "agreement", "relative", "error", "float", "size", "int8", "size"]
    images, agreement, error, *_ = numbers.split()
    assert images == "40"
    assert float(agreement.removesuffix("%")) >= 80
    assert 0 < float(error) < 0.2
    assert path == "net.int8.onnx"
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    same = program("quantize", model, "--data", "digits", "--images", 40, "-o", "same.onnx")
    assert same.out.splitlines()[1] == numbers
    assert Path("same.onnx").read_bytes() == Path(path).read_bytes()
    other = program("quantize", model, "--data", "digits", "--images", 40, "--seed", 1, "-o", "same.onnx")
    assert other.code == 0
    assert Path("same.onnx").read_bytes() != Path(path).read_bytes()


@pytest.mark.slow
def test_quantize_a_file_of_fixed_batch(program: Program) -> None:
    model = exported(program, "--static-batch")
    done = program("quantize", model, "--data", "digits", "--images", 7)
    assert done.out.splitlines()[1].split()[0] == "6"  # batches of the two images of the example
    refused(program("quantize", model, "--data", "digits", "--images", 1, "-o", "o.onnx"), "batches of 2", "gives 1")


@pytest.mark.slow
def test_quantize_refuses(program: Program) -> None:
    refused(program("quantize", "absent.onnx", "--data", "digits"), "absent.onnx: No such file", "want an ONNX file")
    Path("text.onnx").write_text("no network")
    refused(program("quantize", "text.onnx", "--data", "digits"), "text.onnx: no ONNX file")
    model = exported(program)
    before = sorted(Path.cwd().iterdir())
    refused(program("quantize", model, "--data", "digit"), "did you mean", "digits")
    refused(program("quantize", model, "--data", "imagefolder:nowhere"), "imagefolder:nowhere")
    refused(program("quantize", model, "--data", "digits", "-o", model), "is the float file itself")
    refused(program("quantize", model, "--data", "digits", "-o", "nowhere/net.onnx"), "cannot write nowhere/net.onnx")
    assert program("quantize", model).code == 2
    assert program("quantize", model, "--data", "digits", "--images", 0).code == 2
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.slow
def test_quantize_leaves_the_files_of_a_run(program: Program) -> None:
    model = exported(program)
    Path("state.json").write_text("{}")
    refused(program("quantize", model, "--data", "digits", "--images", 9), "are on its record", "--out")
    assert not Path("net.int8.onnx").exists()
    assert program("quantize", model, "--data", "digits", "--images", 9, "--out", "net.int8.onnx").code == 0
