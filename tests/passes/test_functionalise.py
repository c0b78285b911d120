"""`Functionalise` replaces what it may, leaves what it must, and never changes a value."""

from textwrap import dedent

import pytest
import torch
from torch import nn
from torch.nn import functional

from curlfx.graph import show, trace
from curlfx.passes.functionalise import Functionalise
from curlfx.passes.pipeline import run


class Readers(nn.Module):
    """The tensor written into is read again afterwards: it must be read in its new value."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        before = y * 2
        functional.relu(y, inplace=True)
        return before + y


class View(nn.Module):
    """Another name for the tensor is read afterwards."""

    def forward(self, x):
        y = x * 2
        flat = y.flatten(1)
        y.relu_()
        return flat.sum(1)


class OfView(nn.Module):
    """What is written into is part of a tensor that is read afterwards."""

    def forward(self, x):
        y = x * 2
        y.chunk(2, 1)[0].sigmoid_()
        return y


class OfInput(nn.Module):
    """The caller's own tensor."""

    def forward(self, x):
        return functional.dropout(x, training=self.training).relu_() + x


class Positive(nn.Module):
    """An elementwise operator that returns its input."""

    def forward(self, x):
        y = x * 2
        (+y).relu_()
        return y


class Types(nn.Module):
    """The sum stays in single precision."""

    def forward(self, x):
        y = x * 2
        return y.add_(x.double())


class Chain(nn.Module):
    def forward(self, x):
        y = functional.relu6(functional.hardswish(x + 1, inplace=True), inplace=True)
        y += x
        return functional.silu(y.mul_(3), inplace=True)


def mutations(traced) -> int:
    return sum(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in traced.graph.nodes)


@pytest.mark.parametrize(
    ("module", "left"), [(Readers, 0), (Chain, 0), (View, 1), (OfView, 1), (Positive, 1), (OfInput, 1), (Types, 1)]
)
def test_the_function_stays(module, left):
    torch.manual_seed(0)
    module = module().eval()
    x = torch.randn(3, 2, 4, 4)
    traced = trace(module, (x,))
    text = show(traced)
    result, (record,) = run(traced, [Functionalise()])
    assert mutations(result) == left
    assert record.changed == (left == 0)
    assert torch.equal(result.module(x.clone()), module(x.clone()))
    assert show(traced) == text


def test_golden():
    result = Functionalise()(trace(Readers(), (torch.randn(2, 2, 4, 4),)))
    assert show(result) == dedent("""\
        %conv.weight = parameter : f32[2, 2, 1, 1]
        %conv.bias = parameter : f32[2]
        %x = input : f32[2, 2, 4, 4]
        %conv2d = aten.conv2d.default(%x, %conv.weight, %conv.bias) : f32[2, 2, 4, 4]
        %mul = aten.mul.Tensor(%conv2d, 2) : f32[2, 2, 4, 4]
        %relu_ = aten.relu.default(%conv2d) : f32[2, 2, 4, 4]
        %add = aten.add.Tensor(%mul, %relu_) : f32[2, 2, 4, 4]
        return (%add,)""")
