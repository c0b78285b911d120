"""A slim file has no node that its dense file has not, none that does nothing, and constants for weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from benchmarks.trial import random_keep, randomise
from curlfx.coupling import couple
from curlfx.deploy import OnnxFile, export_onnx, parity, prepare
from curlfx.graph import TracedModel, trace
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.sources import load_model

nightly = pytest.mark.nightly
NETWORKS = [
    # Channels that a shortcut without weights pads, and strides that it slices.
    pytest.param("curlfx:resnet20", 32, {"Pad", "Slice", "Reshape"}, marks=pytest.mark.slow),
    pytest.param("torchvision:resnet18", 64, {"Reshape"}, marks=nightly),
    pytest.param("torchvision:mobilenet_v3_small", 64, {"Reshape"}, marks=nightly),
    pytest.param("torchvision:efficientnet_b0", 64, {"Reshape"}, marks=nightly),
    # The shuffle of channels is one Gather, where torch's own is two Reshapes and a Transpose.
    pytest.param("torchvision:shufflenet_v2_x0_5", 64, {"Gather"}, marks=nightly),
    # LayerNorm wants channels last; heads are cut out of one product.
    pytest.param("torchvision:convnext_tiny", 64, {"Transpose", "Reshape"}, marks=nightly),
    pytest.param("torchvision:vit_b_16", 224, {"Transpose", "Reshape", "Gather", "Shape"}, marks=nightly),
]
MOVING = {"Identity", "Reshape", "Pad", "Transpose", "Cast", "Gather", "Slice", "Shape", "Squeeze", "Unsqueeze"}


def written(network: TracedModel, path: Path) -> OnnxFile:
    ready = prepare(network)
    return export_onnx(ready.module, ready.example_inputs, path)


@pytest.mark.parametrize(("spec", "side", "moving"), NETWORKS)
def test_slimming_adds_no_node(spec, side, moving, tmp_path):
    traced = trace(randomise(load_model(spec)), torch.randn(2, 3, side, side))
    coupling = couple(traced)
    slim, _ = run(traced, [Slim(coupling, random_keep(coupling.groups, 0.4))])
    dense_file, slim_file = written(traced, tmp_path / "dense.onnx"), written(slim, tmp_path / "slim.onnx")
    for operator in sorted(dense_file.operators.keys() | slim_file.operators.keys()):
        print(operator, dense_file.operators.get(operator, 0), slim_file.operators.get(operator, 0))
        assert slim_file.operators.get(operator, 0) <= dense_file.operators.get(operator, 0), operator
    assert dense_file.operators.keys() & MOVING <= moving
    assert "BatchNormalization" not in dense_file.operators
    for file in (dense_file, slim_file):
        assert list(idle(file.path)) == []
        assert_constant(file.path)
    assert slim_file.size_bytes < dense_file.size_bytes
    assert parity(slim.module, slim_file.path, slim.example_inputs, (1, 2)).passed


def assert_constant(path: Path) -> None:
    """Weights are no inputs, and every one of them is read."""
    graph = onnx.load(path).graph
    held = {tensor.name for tensor in graph.initializer}
    assert len(graph.input) == 1
    assert held.isdisjoint(value.name for value in graph.input)
    assert held <= {name for node in graph.node for name in node.input}


def idle(path: Path) -> Iterator[str]:
    """Nodes that give back what they are given, and those that could be one with the node before."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    known = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in known
    }
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        source, result = node.input[0], node.output[0]
        other = constants.get(node.input[1]) if len(node.input) > 1 else None
        before = made.get(source)
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        is_idle = {
            "Identity": True,
            "Dropout": True,
            "Cast": types.get(source) == types.get(result),
            "Concat": len(node.input) == 1,
            "Reshape": shapes.get(source) == shapes.get(result) != [],
            "Pad": other is not None and not other.any(),
            "Gather": other is not None
            and other.ndim == 1
            and shapes.get(source) == shapes.get(result)
            and np.array_equal(other, np.arange(len(other))),
            "Transpose": order == sorted(order or []) or (before is not None and before.op_type == "Transpose"),
        }.get(node.op_type, False)
        if is_idle:
            yield f"{node.op_type} {node.name} {result}"
