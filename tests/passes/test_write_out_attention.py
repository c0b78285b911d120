"""`WriteOutAttention` computes what attention computes, for any number of axes, and leaves what can be exported."""

import math
from textwrap import dedent

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from curlfx.deploy import export_onnx, parity, prepare
from curlfx.graph import show, trace
from curlfx.passes.pipeline import run
from curlfx.passes.write_out_attention import WriteOutAttention


class Attention(nn.Module):
    """One call, with a mask that is an input or a buffer."""

    def __init__(self, mask=None, **options) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.options = options

    def forward(self, query, key, value, mask=None):
        mask = self.mask if mask is None else mask
        return functional.scaled_dot_product_attention(query, key, value, mask, **self.options)


def calls(traced) -> int:
    return sum("scaled_dot_product" in str(node.target) for node in traced.graph.nodes)


@st.composite
def attentions(draw):
    """Module and inputs: 3 to 6 axes, leading axes that broadcast, masks, grouped queries."""
    leading = tuple(draw(st.lists(st.integers(1, 3), min_size=0, max_size=3)))
    heads, tokens, others, channels, width = (draw(st.integers(1, 4)) for _ in range(5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    options = {"scale": draw(st.sampled_from([None, 0.3, -1.0]))}
    fewer = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    if draw(st.booleans()):
        options["enable_gqa"] = True
    else:
        fewer = heads

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = normal(2, *leading, heads, tokens, channels), normal(2, *leading, fewer, others, channels)
    inputs = [query, key, normal(2, *leading, fewer, others, width)]
    kind = draw(st.sampled_from(["none", "causal", "bool", "float", "hiding"]))
    if kind == "causal":
        options["is_causal"] = True
    elif kind != "none":
        full = (2, *leading, heads, tokens, others)
        rank = draw(st.integers(2, len(full)))
        shape = [size if axis >= 0 or draw(st.booleans()) else 1 for axis, size in enumerate(full[-rank:], 2 - rank)]
        mask = normal(*shape)
        mask = mask > 0 if kind == "bool" else mask.masked_fill(mask > 0, -math.inf) if kind == "hiding" else mask
        inputs.append(mask)
    return options, inputs, draw(st.booleans())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(attentions())
def test_the_function_stays(drawn):
    options, inputs, is_buffer = drawn
    module = Attention(inputs.pop() if is_buffer and len(inputs) == 4 else None, **options)
    traced = trace(module, tuple(inputs), dynamic_batch=False)
    text = show(traced)
    result, (record,) = run(traced, [WriteOutAttention()])
    wanted = module(*inputs)
    if inputs[0].ndim != 4:
        assert calls(result) == 0
    assert record.changed == (calls(result) == 0)
    torch.testing.assert_close(result.module(*inputs), wanted, rtol=1e-12, atol=1e-12)
    assert show(traced) == text


def test_golden():
    query, key = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 7, 6)
    result = WriteOutAttention()(trace(Attention(torch.eye(5, 7, dtype=torch.bool)), (query, key, key)))
    assert show(result) == dedent("""\
        %mask = buffer : bool[5, 7]
        %query = input : f32[2, 3, 4, 5, 6]
        %key = input : f32[2, 3, 4, 7, 6]
        %value = input : f32[2, 3, 4, 7, 6]
        %mul_tensor = aten.mul.Tensor(%query, 0.408248290463863) : f32[2, 3, 4, 5, 6]
        %transpose_int = aten.transpose.int(%key, -2, -1) : f32[2, 3, 4, 6, 7]
        %matmul_default = aten.matmul.default(%mul_tensor, %transpose_int) : f32[2, 3, 4, 5, 7]
        %logical_not_default = aten.logical_not.default(%mask) : bool[5, 7]
        %masked_fill_scalar = aten.masked_fill.Scalar(%matmul_default, %logical_not_default, -inf) : f32[2, 3, 4, 5, 7]
        %softmax_int = aten.softmax.int(%masked_fill_scalar, -1) : f32[2, 3, 4, 5, 7]
        %matmul_default_1 = aten.matmul.default(%softmax_int, %value) : f32[2, 3, 4, 5, 6]
        return (%matmul_default_1,)""")


class Every(nn.Module):
    """All that a network could do with more or fewer than four axes, at any batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("allowed", torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.4)
        self.bias = nn.Parameter(torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        """Shape ``(B, 3, 4, 5, 6)``."""
        attend = functional.scaled_dot_product_attention
        narrow = x.mean((1, 2))
        hidden = x.sum(-1, keepdim=True) > 2.0
        biased = torch.where(hidden, -math.inf, x @ x.mT)
        return {
            "plain": attend(x, x, x),
            "three": attend(narrow, narrow, narrow, self.allowed),
            "causal": attend(x, x[..., :3, :], x[..., :3, :], is_causal=True),
            "masked": attend(x, x, x, self.allowed, scale=0.7),
            "biased": attend(x, x, x, self.bias),
            "computed": attend(x, x, x, biased),
            "grouped": attend(x, x[:, :, :2], x[:, :, :2], enable_gqa=True),
            "broadcast": attend(x[:, 0], x[:, 0, :1], x[:, 0, :1]),
            "six": attend(x[:, None], x[:, None], x[:, None], hidden[:, None].mT),
        }


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_onnxruntime_computes_the_same_at_any_batch_size(opset, tmp_path):
    x = (torch.randn(3, 3, 4, 5, 6, generator=torch.Generator().manual_seed(2)),)
    module = Every().eval()
    assert not module(*x)["computed"].isnan().any()
    made = export_onnx(prepare(trace(module, x)).module, x, tmp_path / "net.onnx", opset=opset)
    report = parity(module, made.path, x, (1, 2, 3))
    assert report.worst < 1e-5, report.deviations


class Masked(nn.Module):
    """Four axes, which the exporter takes, with masks that it or onnxruntime would get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor([[True, False, True, True, False]]))
        self.register_buffer("bias", torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        """Shape ``(B, 3, 5, 6)``, the first query of the first image with nothing to attend to."""
        attend = functional.scaled_dot_product_attention
        positive = x[..., :1] > 0
        allowed = positive & positive.mT
        return {
            "bool": attend(x, x, x, allowed),
            "float": attend(x, x, x, torch.where(allowed, 0.0, -math.inf)),
            "broadcast": attend(x, x, x, self.seen),
            "biased": attend(x, x, x, self.bias),
        }


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_masks_that_hide_everything_or_broadcast_at_four_axes(opset, tmp_path):
    x = (torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(2)),)
    x[0][0, 0, 0, 0] = -1
    prepared = prepare(trace(Masked(), x))
    assert calls(prepared) == 1
    made = export_onnx(prepared.module, x, tmp_path / "net.onnx", opset=opset)
    report = parity(Masked(), made.path, x, (1, 2))
    assert report.worst < 1e-5, report.deviations


def test_attention_that_reads_attention():
    class Twice(nn.Module):
        def forward(self, x):
            attend = functional.scaled_dot_product_attention
            return attend(attend(x, x, x), x, x)

    x = torch.randn(2, 5, 6, dtype=torch.float64)
    result = WriteOutAttention()(trace(Twice(), x))
    assert calls(result) == 0
    torch.testing.assert_close(result.module(x), Twice()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3)), {}),
        (((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 7, 3)), {"enable_gqa": True}),
        (((2, 3, 4, 5, 6),) * 3, {"dropout_p": 0.5}),
    ],
)
def test_what_can_be_exported_or_is_random_stays(shapes, options):
    traced = trace(Attention(**options), tuple(torch.randn(shape) for shape in shapes))
    result, (record,) = run(traced, [WriteOutAttention()])
    assert not record.changed
    assert show(result) == show(traced)
