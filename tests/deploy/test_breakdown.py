"""Which convolutions leave the fast path, against the domains in the graph that onnxruntime saves, and why."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from curlfx.deploy.breakdown import Breakdown, OperatorTime, SlowConvolution, break_down
from curlfx.deploy.profile import NodeTime, profile

CPU = "CPUExecutionProvider"


def convolution(path, inputs, outputs, *, groups=1, size=(6, 6), weights="constant", relu=True, name="conv"):
    """Write one 3 × 3 convolution of any kind."""
    value = helper.make_tensor_value_info
    shape = (outputs, inputs // groups, *[3] * len(size))
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), "w")
    given = [value("x", TensorProto.FLOAT, ("batch", inputs, *size))]
    nodes, used = [], "w"
    if weights == "input":
        given.append(value("w", TensorProto.FLOAT, shape))
    if weights == "computed":
        given.append(value("scale", TensorProto.FLOAT, (1,)))
        nodes.append(helper.make_node("Mul", ["w", "scale"], ["scaled"], "mul"))
        used = "scaled"
    nodes.append(helper.make_node("Conv", ["x", used], ["c"], name, group=groups))
    nodes.append(helper.make_node("Relu" if relu else "Sin", ["c"], ["y"], "after"))
    graph = helper.make_graph(nodes, "g", given, [value("y", TensorProto.FLOAT, None)], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def feeds(path):
    constant = {tensor.name for tensor in onnx.load(path).graph.initializer}
    given = [value for value in onnx.load(path).graph.input if value.name not in constant]
    shapes = {value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim] for value in given}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def measured(path):
    return break_down(path, profile(path, feeds(path), runs=1, warmup=0))


def blocked_nodes(path, target):
    """Convolutions of the graph that onnxruntime saves: those of its domain for blocks, and all."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(target), 3
    onnxruntime.InferenceSession(str(path), options, providers=[CPU])
    nodes = [node for node in onnx.load(target).graph.node if node.op_type in {"Conv", "FusedConv"}]
    return [node for node in nodes if node.domain == "com.microsoft.nchwc"], nodes


CASES = {
    "first layer": {"inputs": 3, "outputs": 8},
    "aligned": {"inputs": 32, "outputs": 32},
    "odd outputs": {"inputs": 32, "outputs": 7},
    "odd inputs": {"inputs": 30, "outputs": 32},
    "odd inputs, no activation": {"inputs": 30, "outputs": 32, "relu": False},
    "odd inputs, misleading name": {"inputs": 30, "outputs": 32, "name": "mine_nchwc"},
    "no name": {"inputs": 30, "outputs": 32, "name": ""},
    "depthwise": {"inputs": 32, "outputs": 32, "groups": 32},
    "odd depthwise": {"inputs": 30, "outputs": 30, "groups": 30},
    "groups": {"inputs": 64, "outputs": 32, "groups": 2},
    "odd groups": {"inputs": 36, "outputs": 36, "groups": 3},
    "one dimension": {"inputs": 32, "outputs": 32, "size": (6,)},
    "weights given": {"inputs": 32, "outputs": 32, "weights": "input"},
    "weights computed": {"inputs": 32, "outputs": 32, "weights": "computed"},
}
REASONS = {
    "odd inputs": "input channels no multiple of 4",
    "odd inputs, no activation": "input channels no multiple of 4",
    "odd inputs, misleading name": "input channels no multiple of 4",
    "no name": "input channels no multiple of 4",
    "odd depthwise": "depthwise channels no multiple of 4",
    "odd groups": "channels of a group no multiple of the block of 8 or 16",
    "one dimension": "not two-dimensional",
    "weights given": "weights are an input of the graph; export them as constants",
    "weights computed": "weights are computed in the graph",
}


@pytest.mark.parametrize("case", CASES)
def test_the_slow_are_those_that_onnxruntime_does_not_block(case, tmp_path):
    path = convolution(tmp_path / "a.onnx", **CASES[case])
    found = measured(path)
    blocked, everything = blocked_nodes(path, tmp_path / "optimised.onnx")
    assert found.convolutions == len(everything) == 1
    assert len(found.slow) == len(everything) - len(blocked)
    for one in found.slow:
        assert one.input_channels == CASES[case]["inputs"]
        assert one.reason == REASONS.get(case)
        named = CASES[case].get("name", "conv")
        assert one.weight == (None if not named else "scaled" if case == "weights computed" else "w")
    if blocked:
        assert found.reorders["ReorderOutput"] == 1
        assert any(one.op_type == "Conv (NCHWc)" for one in found.operators)


def test_an_optimised_file_says_the_domain_itself(tmp_path):
    path = convolution(tmp_path / "a.onnx", 32, 32)
    blocked, _ = blocked_nodes(path, tmp_path / "optimised.onnx")
    found = measured(tmp_path / "optimised.onnx")
    assert found.convolutions == 1
    assert len(found.slow) == 1 - len(blocked)


def test_times_by_operator():
    nodes = [
        node("a_nchwc", "Conv", 3.0),
        node("b", "FusedConv", 1.0, inputs=30),
        node("ReorderInput_token_3", "ReorderInput", 0.5),
        node("c_nchwc_token_1", "Conv", 3.0),
        node("pool_nchwc", "MaxPool", 0.5),
    ]
    found = summed(nodes)
    assert found.operators == (
        OperatorTime("Conv (NCHWc)", 6.0, 0.75, 2),
        OperatorTime("FusedConv", 1.0, 0.125, 1),
        OperatorTime("ReorderInput", 0.5, 0.0625, 1),
        OperatorTime("MaxPool (NCHWc)", 0.5, 0.0625, 1),
    )
    assert found.slow == (SlowConvolution("b", None, 30, 1.0, "input channels no multiple of 4"),)
    assert found.reorders == {"ReorderInput": 1, "ReorderOutput": 0}
    assert found.convolutions == 3
    assert json.loads(json.dumps(found.to_json()))["operators"][0]["nodes"] == 2


def test_other_providers_have_no_fast_path_to_leave():
    found = summed([node("a", "Conv", 1.0, inputs=30, provider="CUDAExecutionProvider")])
    assert found.slow == ()
    assert found.sentences("a.onnx") == (
        "a.onnx: the profile says how long nodes take to start on CUDAExecutionProvider, not to run",
    )


def test_a_profile_of_zeros_has_no_shares():
    found = summed([node("a", "Conv", 0.0, inputs=30)])
    assert found.operators[0].share == 0
    assert ", 0% of the time" in found.sentences("a.onnx")[0]


def test_a_convolution_is_called_by_its_parameter_where_that_is_known():
    assert str(SlowConvolution("node_Conv_7", "stage1.0.conv.weight", 30, 1.0, None)) == "stage1.0.conv.weight (30)"
    assert str(SlowConvolution("/stage1/0/conv", "onnx::Conv_12", 30, 1.0, None)) == "/stage1/0/conv (30)"
    assert str(SlowConvolution("node_Conv_7", None, 30, 1.0, None)) == "node_Conv_7 (30)"


def test_sentences_join_convolutions_of_one_reason():
    nodes = [node(f"conv{number}", "FusedConv", 1.0, inputs=30) for number in range(7)]
    nodes += [node("other", "Conv", 1.0, inputs=32), node("add", "Add", 2.0)]
    aligned, unknown = summed(nodes).sentences("slim.onnx")
    assert aligned == (
        "slim.onnx: 7 convolutions left the fast path (input channels no multiple of 4), 70% of the time: conv0 (30), "
        "conv1 (30), conv2 (30), conv3 (30), conv4 (30) and 2 more"
    )
    assert unknown == (
        "slim.onnx: 1 convolution left the fast path (reason unknown; perhaps this processor has no such path), "
        "10% of the time: other (32)"
    )
    assert summed(nodes[-1:]).sentences("slim.onnx") == ()


def node(name, op, milliseconds, *, inputs=32, provider=CPU):
    return NodeTime(name, op, provider, milliseconds, (1, 32, 6, 6), ((1, inputs, 8, 8), (32, inputs, 3, 3)))


@pytest.fixture(autouse=True)
def _file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def summed(nodes) -> Breakdown:
    """Of a file whose own nodes have other names."""
    return break_down(convolution("other.onnx", 3, 4, name="elsewhere"), nodes)
