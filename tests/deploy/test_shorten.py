"""Detours of the exporter are gone from the files, and nothing else is."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnxscript import ir
from torch import nn
from torch.nn import functional

from curlfx.deploy import export_onnx, parity
from curlfx.deploy.shorten import shorten


class Heads(nn.Module):
    """Attention of 2 heads over 5 tokens, of which each may see those before it."""

    def __init__(self, masked: torch.dtype | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        self.mask = later if masked == torch.bool else torch.zeros(5, 5).masked_fill(later, float("-inf"))
        self.mask = self.mask if masked else None

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False, attn_mask=self.mask)[0]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20, 22])
@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
def test_attention_has_no_shapes_to_compute(opset, masked, tmp_path):
    module, x = Heads(masked), (torch.randn(2, 5, 6),)
    made = export_onnx(module, x, tmp_path / "net.onnx", opset=opset)
    assert made.operators.keys().isdisjoint({"Shape", "Slice", "Concat", "Squeeze", "Unsqueeze", "Identity"})
    assert parity(module, made.path, x, (1, 3)).worst < 1e-6


def test_no_constant_is_left_that_nobody_reads(tmp_path):
    graph = onnx.load(export_onnx(Heads(), (torch.randn(2, 5, 6),), tmp_path / "net.onnx").path).graph
    assert {value.name for value in graph.initializer} == {name for node in graph.node for name in node.input} & {
        value.name for value in graph.initializer
    }
    assert len(graph.initializer) > 0


class Moved(nn.Module):
    """An axis put in at one place and taken out at another one."""

    def __init__(self, put: int, order: tuple[int, ...], taken: int) -> None:
        super().__init__()
        self.put, self.order, self.taken = put, order, taken

    def forward(self, x):
        return x.sigmoid().unsqueeze(self.put).permute(self.order).squeeze(self.taken)


@pytest.mark.parametrize(
    ("put", "order", "taken"),
    [(0, (3, 1, 2, 0), -1), (0, (3, 1, 2, 0), 3), (-2, (2, 1, 3, 0), 0), (1, (1, 3, 2, 0), -4)],
)
def test_an_axis_that_comes_and_goes(put, order, taken, tmp_path):
    module, x = Moved(put, order, taken), (torch.randn(2, 3, 4),)
    made = export_onnx(module, x, tmp_path / "net.onnx")
    assert made.operators == {"Sigmoid": 1, "Transpose": 1}
    assert parity(module, made.path, x, (1, 3)).worst < 1e-6


class OneOfTwo(nn.Module):
    """The axis that is taken out is another one, of length 1."""

    def forward(self, x):
        return x.sigmoid().unsqueeze(0).permute(0, 2, 1, 3).squeeze(1)


def test_another_axis_stays_out(tmp_path):
    x = (torch.randn(2, 1, 4),)
    made = export_onnx(OneOfTwo(), x, tmp_path / "net.onnx")
    assert made.operators["Squeeze"] == made.operators["Unsqueeze"] == 1
    assert parity(OneOfTwo(), made.path, x, (1, 3)).worst < 1e-6


class KeysAreRead(nn.Module):
    """What the attention computes on the way to its keys is no output, but the keys are."""

    def forward(self, x):
        keys = x.sigmoid()
        return functional.scaled_dot_product_attention(x, keys, x), keys


def test_keys_that_are_an_output_too(tmp_path):
    x = (torch.randn(2, 2, 5, 3),)
    made = export_onnx(KeysAreRead(), x, tmp_path / "net.onnx")
    assert "Shape" not in made.operators
    assert parity(KeysAreRead(), made.path, x, (1, 3)).worst < 1e-6


def keys_by_hand(end: str) -> ir.Model:
    """What the exporter writes for the keys of an attention, with a ``Shape`` that ends where it is told to."""
    return ir.from_onnx_text(f"""
        <ir_version: 9, opset_import: ["" : 20]>
        keys (float[2, 3, 4, 1] keys) => (float[a, b, c] y)
        <int64[1] last = {{-1}}, int64[1] second = {{-2}}, int64[1] far = {{{2**63 - 1}}},
         int64[1] low = {{{1 - 2**63}}}>
        {{
            shape = Shape <start = 0{end}> (keys)
            channels = Slice (shape, last, far)
            tokens = Slice (shape, second, last)
            before = Slice (shape, low, second)
            spread = Concat <axis = 0> (last, tokens, channels)
            flat = Reshape (keys, spread)
            turned = Transpose <perm = [0, 2, 1]> (flat)
            back = Concat <axis = 0> (before, channels, tokens)
            y = Reshape (turned, back)
        }}
    """)


def test_a_shape_that_ends_early_is_another_one():
    whole, ended = keys_by_hand(""), keys_by_hand(", end = 3")
    before = [node.op_type for node in ended.graph]
    shorten(whole)
    shorten(ended)
    assert [node.op_type for node in whole.graph] == ["Transpose"]
    assert [node.op_type for node in ended.graph] == before
