"""The printed form is golden text."""

import operator
from textwrap import dedent

import torch
from torch import nn

from curlfx.graph import propagate, shape_of, show, trace, where
from curlfx.graph.printer import type_of
from tests.graph.networks import Small

GOLDEN = dedent("""\
    %conv.weight = parameter : f32[4, 3, 3, 3]
    %bn.weight = parameter : f32[4]
    %bn.bias = parameter : f32[4]
    %fc.weight = parameter : f32[2, 4]
    %fc.bias = parameter : f32[2]
    %bn.running_mean = buffer : f32[4]
    %bn.running_var = buffer : f32[4]
    %x = input : f32[2, 3, 6, 6]
    %conv2d = aten.conv2d.default(%x, %conv.weight, None, [1, 1], [1, 1]) : f32[2, 4, 6, 6]
    %batch_norm = aten.batch_norm.default(%conv2d, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var, False, 0.1, 1e-05, True) : f32[2, 4, 6, 6]
    %relu = aten.relu.default(%batch_norm) : f32[2, 4, 6, 6]
    %mean = aten.mean.dim(%relu, [2, 3]) : f32[2, 4]
    %dropout = aten.dropout.default(%mean, 0.25, False) : f32[2, 4]
    %linear = aten.linear.default(%dropout, %fc.weight, %fc.bias) : f32[2, 2]
    return (%linear,)""")  # noqa: E501 - one node, one line


def test_golden():
    traced = trace(Small(), torch.randn(1, 3, 6, 6))
    assert show(traced) == show(traced.graph) == GOLDEN
    assert show(trace(Small(), torch.randn(2, 3, 6, 6))) == GOLDEN


def test_sizes_are_numbers_and_operators_have_names():
    class Sized(nn.Module):
        def forward(self, x):
            parts = x.unflatten(1, (2, 3)).unbind(1)
            return parts[1].new_zeros(x.shape[0] * 2, dtype=torch.float64), {"b": parts[0]}

    text = show(trace(Sized(), torch.randn(5, 6)))
    assert "%sym_size_int" in text
    assert ": 5\n" in text
    assert "= operator.mul(" in text
    assert ": 10\n" in text
    assert ": (f32[5, 3], f32[5, 3])" in text
    assert "dtype=f64" in text


def test_types_and_names_without_shapes():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(operator.getitem, (x, (slice(None), 0)))
    graph.output({"a": graph.call_function(torch.relu, (y,), {"kind": "s"})})
    assert show(graph) == (
        "%x = input\n%getitem = operator.getitem(%x, (None:None:None, 0))\n"
        "%relu = relu(%getitem, kind='s')\nreturn {'a': %relu}"
    )
    assert type_of([torch.zeros(2, dtype=torch.bool), 3, None]) == "(bool[2], 3, None)"


def test_shapes_are_those_of_the_real_values():
    class InPlace(nn.Module):
        def forward(self, x):
            y = x + 1
            z = y.unsqueeze_(1).relu_()
            return z.transpose_(1, 2)

    traced = trace(InPlace(), torch.randn(2, 3))
    propagate(traced)
    shapes = {node.name: shape_of(node) for node in traced.graph.nodes if node.op == "call_function"}
    assert shapes == {"add": (2, 3), "unsqueeze_": (2, 1, 3), "relu_": (2, 1, 3), "transpose_": (2, 3, 1)}


def test_where_a_node_came_from():
    traced = trace(Small(), torch.randn(1, 3, 6, 6))
    lines = {node.name: where(node) for node in traced.graph.nodes}
    assert lines["x"] == ""
    assert lines["conv2d"].startswith("graph/networks.py:")
    assert lines["conv2d"] == lines["batch_norm"] != lines["linear"]


def test_lines_of_torchvision_are_the_users():
    import torchvision

    traced = trace(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 32, 32))
    places = {where(node) for node in traced.graph.nodes if node.op == "call_function"}
    assert all(place.startswith("models/resnet.py:") for place in places)
