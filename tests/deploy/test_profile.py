"""Profiles of small networks: every node of the optimised graph once, in the order of execution."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from curlfx.deploy.profile import _runs, _summarised, profile
from curlfx.errors import ConfigError, ModelError

IMAGE = {"x": np.ones((2, 3, 8, 8), np.float32)}


def convolutions(path, widths, *, relu=True):
    """Write a chain of 3 × 3 convolutions, each with a ReLU, and an average at the end."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        weight = generator.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        last = f"c{number}"
        if relu:
            nodes.append(helper.make_node("Relu", [last], [f"r{number}"], f"relu{number}"))
            last = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], "average"))
    return save(path, nodes, weights, ("batch", widths[-1], 1, 1))


def save(path, nodes, weights, shape):
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ("batch", 3, 8, 8))]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, shape)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def optimised(path, target):
    """The graph that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(target), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(target).graph


def test_every_node_of_the_optimised_graph_once_in_execution_order(tmp_path):
    path = convolutions(tmp_path / "a.onnx", (3, 16, 30, 16))
    found = profile(path, IMAGE, runs=4, warmup=2)
    graph = optimised(path, tmp_path / "optimised.onnx")
    assert sorted((node.name, node.op_type) for node in found) == sorted((one.name, one.op_type) for one in graph.node)
    places = {node.name: place for place, node in enumerate(found)}
    makers = {output: node.name for node in graph.node for output in node.output}
    before = [(places[makers[name]], places[node.name]) for node in graph.node for name in node.input if name in makers]
    assert before
    assert all(first < second for first, second in before)
    assert all(math.isfinite(node.milliseconds) and node.milliseconds >= 0 for node in found)
    assert {node.provider for node in found} == {"CPUExecutionProvider"}
    assert found[0].input_shapes[:2] == ((2, 3, 8, 8), (16, 3, 3, 3))
    assert found[0].output_shape == (2, 16, 8, 8)
    assert found[-1].output_shape is not None
    assert found[-1].output_shape[0] == 2


def test_a_branch_is_one_node(tmp_path):
    def branch(name, op):
        return helper.make_graph(
            [helper.make_node(op, ["x"], [f"{name}_a"]), helper.make_node("Neg", [f"{name}_a"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3, 8, 8))],
        )

    up, down = branch("up", "Exp"), branch("down", "Abs")
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], "most", keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"], "greater"),
        helper.make_node("If", ["positive"], ["z"], "if", then_branch=up, else_branch=down),
        helper.make_node("Neg", ["z"], ["y"], "neg"),
    ]
    path = save(
        tmp_path / "a.onnx", nodes, [numpy_helper.from_array(np.zeros((), np.float32), "zero")], ("batch", 3, 8, 8)
    )
    found = profile(path, IMAGE, runs=2, warmup=1)
    assert [node.name for node in found] == ["most", "greater", "if", "neg"]


def event(name, start, length, op="Conv"):
    args = {"op_name": op, "provider": "P", "output_type_shape": [{"float": [1, 2]}], "input_type_shape": []}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length, "args": args}


def test_medians_of_known_events(tmp_path):
    events = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9, "args": {}}]
    for first, second in ((1000, 5), (10, 7), (30, 6)):
        events += [
            event("a", 10, first),
            event("inside", 2001, 3),
            event("b", 2000, second, op="Loop"),  # begins before what is inside it and is written behind
            {"cat": "Node", "name": "a_fence_after", "ts": 11, "dur": 900, "args": {"op_name": "Conv"}},
            {"cat": "Session", "name": "model_run", "ts": 0, "dur": 2000, "args": {}},
        ]
    runs = _runs([*events, event("a", 10, 1)])  # the last run was cut off
    found = _summarised(tmp_path, runs, 0.5)
    assert [(node.name, node.milliseconds) for node in found] == [("a", 0.030), ("b", 0.006)]
    assert found[0].output_shape == (1, 2)
    assert found[0].input_shapes == ()
    with pytest.raises(ModelError, match="same nodes every time"):
        _summarised(tmp_path, [runs[0], runs[0][:1]], 0.5)


def test_refusals(tmp_path):
    path = convolutions(tmp_path / "a.onnx", (3, 4))
    with pytest.raises(ModelError, match=r"absent\.onnx: No such file"):
        profile(tmp_path / "absent.onnx", IMAGE)
    with pytest.raises(ModelError, match="fails on these inputs"):
        profile(path, {"x": np.ones((2, 4, 8, 8), np.float32)})
    for names in (["z"], ["x", "z"], []):
        with pytest.raises(ConfigError, match=f"its inputs are x; found {', '.join(names) or 'none'}"):
            profile(path, dict.fromkeys(names, IMAGE["x"]))
    with pytest.raises(ConfigError, match="runs = 0"):
        profile(path, IMAGE, runs=0)
    with pytest.raises(ConfigError, match="warmup = -1"):
        profile(path, IMAGE, warmup=-1)
    with pytest.raises(ConfigError, match="provider = 'abacus'"):
        profile(path, IMAGE, provider="abacus")
    with pytest.raises(ConfigError, match="threads = -1"):
        profile(path, IMAGE, threads=-1)
