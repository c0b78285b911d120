"""``curlfx bench``: tables, JSON and a picture of files of known networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from curlfx.cli import bench as command
from tests.cli.conftest import Program

FEW = ("--rounds", "2", "--runs", "1")


@pytest.fixture
def files(program: Program) -> list[str]:
    """Two convolutions: one of 32 channels, one of 30, which is off the fast path."""
    value = helper.make_tensor_value_info
    for name, channels in (("dense.onnx", 32), ("slim.onnx", 30)):
        weight = numpy_helper.from_array(np.ones((32, channels, 3, 3), np.float32), "w")
        given = [value("x", TensorProto.FLOAT, ("batch", channels, 6, 6))]
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "node_conv")]
        graph = helper.make_graph(nodes, "g", given, [value("y", TensorProto.FLOAT, None)], [weight])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), name)
    return ["dense.onnx", "slim.onnx"]


def test_latency_alone_by_default(program: Program, files: list[str]) -> None:
    done = program("bench", *files, *FEW)
    assert done.code == 0
    assert done.out.startswith("file ")
    assert "operator" not in done.out
    assert "memory MiB" not in done.out


def test_profile_and_memory_are_tables(program: Program, files: list[str]) -> None:
    done = program("bench", *files, *FEW, "--profile", "--memory")
    lines = done.out.splitlines()
    assert lines[0].split()[-2:] == ["memory", "MiB"]
    (title,) = (line for line in lines if line.startswith("slim.onnx: "))
    assert title == "slim.onnx: 1 of 1 convolutions off the fast path; 0 ReorderInput, 0 ReorderOutput"
    header, row = lines[lines.index(title) + 1 :][:2]
    assert header.split() == ["operator", "ms", "share", "nodes"]
    assert row.split()[0] == "Conv"
    assert row.split()[2:] == ["100.0%", "1"]
    (note,) = (line for line in lines if line.startswith("note: slim.onnx: 1 convolution left the fast path"))
    assert note.endswith(": node_conv (30)")


def test_json(program: Program, files: list[str]) -> None:
    done = program("bench", *files, *FEW, "--profile", "--memory", "--json")
    found = json.loads(done.out)
    slim = found["entries"][1]
    (slow,) = slim["profile"]["slow"]
    assert (slow["name"], slow["input_channels"]) == ("node_conv", 30)
    assert slow["reason"] == "input channels no multiple of 4"
    assert slim["memory_mib"] >= 0
    assert any("left the fast path" in one for one in found["warnings"])


def test_plot(program: Program, files: list[str]) -> None:
    done = program("bench", *files, *FEW, "--plot", "latency.svg")
    assert done.code == 0
    assert "slim.onnx" in Path("latency.svg").read_text()
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["dense.onnx", "latency.svg", "slim.onnx"]


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_timed(
    program: Program, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "with_folders", pytest.fail)
    done = program("bench", *files, "--plot", "latency.gif")
    assert done.code == 2
    assert "want a name that ends in .svg, .png, .pdf" in done.err
