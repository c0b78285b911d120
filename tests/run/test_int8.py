"""The slim network in 8 bits, as a job writes and judges it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from curlfx.run.int8 import INT8, OnnxNetwork
from curlfx.run.reporting import read_summary
from curlfx.run.runner import run


@pytest.mark.slow
def test_a_job_writes_and_measures_it(tiny_job: dict[str, Any], tmp_path: Path) -> None:
    found = run({**tiny_job, "importance": "magnitude", "export": {"int8": True}, "out": tmp_path / "run"})
    file, figures = found.directory / INT8, found.summary["int8"]
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(file).graph.node}
    assert figures["size_bytes"] == file.stat().st_size
    assert figures["images"] == tiny_job["proxy_images"]
    assert 0.9 <= figures["top1_agreement"] <= 1
    assert abs(figures["accuracy"] - found.summary["slim"]["accuracy"]) <= 0.1
    assert figures["latency_ms"]["median"] > 0
    assert 0 < figures["speedup_interval"]["low"] <= figures["speedup"] <= figures["speedup_interval"]["high"]
    assert read_summary(found.directory) == found.summary
    assert "in 8 bits: accuracy" in (found.directory / "report.html").read_text()


@pytest.mark.parametrize("batch", ["N", 3])
@pytest.mark.parametrize("images", [1, 3, 7])
def test_a_file_takes_any_number_of_images(tmp_path: Path, batch: int | str, images: int) -> None:
    path = tmp_path / "double.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, 2, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    network = OnnxNetwork(path)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(images, 1, 2, 2)).astype(np.float32))
    assert network.batch == (None if batch == "N" else batch)
    assert torch.equal(network(x), 2 * x)
