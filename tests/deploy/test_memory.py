"""Memory in a process of its own: more weights take more; what fails there is said here."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from curlfx.deploy.memory import peak_memory
from curlfx.errors import ConfigError, ModelError


def dense(path, features):
    """Write one product with ``features × features`` weights."""
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((features, features), np.float32), "w")
    x, y = (value(name, TensorProto.FLOAT, (1, features)) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def feed(features):
    return {"x": np.zeros((1, features), np.float32)}


def test_more_weights_take_more_memory_whatever_this_process_holds(tmp_path):
    held = np.ones(2**26)  # 512 MiB
    small, large = peak_memory(
        [dense(tmp_path / "small.onnx", 8), dense(tmp_path / "large.onnx", 2048)], [feed(8), feed(2048)]
    )
    assert held.nbytes == 2**29
    assert 0 <= small < 8
    assert 16 <= large < 200  # 16 MiB of weights, and the runtime's copies of them


def test_failures(tmp_path, monkeypatch):
    path = dense(tmp_path / "a.onnx", 4)
    with pytest.raises(
        ModelError, match=r"a\.onnx: cannot be run in a process of its own: onnxruntime fails: .*dimension"
    ):
        peak_memory([path], [feed(5)])
    with pytest.raises(ConfigError, match="provider = 'abacus'"):
        peak_memory([path], [feed(4)], provider="abacus")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="on Linux only"):
        peak_memory([path], [feed(4)])
