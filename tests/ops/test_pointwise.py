"""Rules of element-wise ops: labels are tied where operands meet, and pass where one is broadcast."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.net import Net, between, pointwise, tokens, weight
from tests.ops.rules import PASSES, check, frozen

UNLABELLED = "meets an axis whose channels have no labels"


def meet(function, second=8, **layers):
    """``h(function(a(image), b(image)))``."""
    return Net(
        lambda m, x: m.h(function(m.a(x), m.b(x))),
        a=pointwise(3, 8),
        b=pointwise(3, second),
        h=pointwise(8, 2),
        **layers,
    )


TIED = ["8: a.weight[0] b.weight[0] h.weight[1]"]

CASES = {
    "add": (meet(lambda a, b: a + b), TIED),
    "add_in_place": (meet(lambda a, b: a.add_(b)), TIED),
    "maximum": (meet(torch.maximum), TIED),
    "where": (meet(lambda a, b: torch.where(a > 0, b, 1.0)), TIED),
    "masked_fill": (meet(lambda a, b: a.masked_fill(b > 0, 1.0)), TIED),
    "addcmul": (meet(lambda a, b: torch.addcmul(a, b, b)), TIED),
    "expand_as": (meet(lambda a, b: a.mean((2, 3), keepdim=True).expand_as(b)), TIED),
    "one_map_for_all": (meet(lambda a, b: a * b.sigmoid(), second=1), PASSES),
    "one_map_expanded": (meet(lambda a, b: b.expand_as(a) * a, second=1), PASSES),
    "with_the_image": (
        Net(lambda m, x: m.h(m.a(x) + x), a=pointwise(3, 3), h=pointwise(3, 2)),
        frozen(UNLABELLED, 3),
    ),
    "chain": (between(lambda m, y: functional.gelu(y.abs().clamp(0, 6).exp() ** 2).round()), PASSES),
    "aliases": (between(lambda m, y: torch.multiply(torch.absolute(y), torch.divide(y, 2)).negative()), PASSES),
    "untagged_in_place": (between(lambda m, y: functional.relu6(y, inplace=True)), PASSES),
    "no_tag": (between(lambda m, y: functional.mish(functional.hardswish(functional.selu(y)))), PASSES),
    "in_place": (between(lambda m, y: y.relu_().add_(1).mul_(2)), PASSES),
    "copies": (between(lambda m, y: y.clone().contiguous().detach().to(torch.float64).type_as(y)), PASSES),
    "comparison": (between(lambda m, y: (y > y.mean((2, 3), keepdim=True)).double()), PASSES),
    "dropout": (between(lambda m, y: m.d(y), d=nn.Sequential(nn.Dropout(), nn.Dropout2d())), PASSES),
    # Parameters and buffers that belong to no layer.
    "scale": (between(lambda m, y: y * m.s, s=weight(8, 1, 1)), ["8: s[0] a.weight[0] h.weight[1]"]),
    "scale_per_element": (between(lambda m, y: y * m.s, s=weight(8, 4, 4)), ["8: s[0] a.weight[0] h.weight[1]"]),
    "scale_per_pixel": (between(lambda m, y: y * m.s, s=weight(4, 4)), PASSES),
    "buffer": (
        between(lambda m, y: y - m.mean, mean=torch.linspace(-1, 1, 8).view(8, 1, 1)),
        ["8: a.weight[0] h.weight[1] mean[0]"],
    ),
    "constant": (
        between(lambda m, y: y * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=torch.float64).view(8, 1, 1)),
        ["8: a.weight[0] h.weight[1] lifted_tensor_0[0]"],
    ),
    "counted": (between(lambda m, y: y * torch.arange(8).view(8, 1, 1)), ["8: a.weight[0] h.weight[1]"]),
    "prelu": (between(lambda m, y: m.p(y), p=nn.PReLU(8)), ["8: a.weight[0] h.weight[1] p.weight[0]"]),
    "prelu_one_slope": (between(lambda m, y: m.p(y), p=nn.PReLU()), PASSES),
    # Halves of an axis.
    "glu": (between(lambda m, y: functional.glu(y, 1), outputs=4), ["4: a.weight[0] h.weight[1]"]),
    "glu_of_space": (between(lambda m, y: functional.glu(y, 2)), PASSES),
    "swiglu": (
        tokens(lambda m, y: functional.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1], outputs=4),
        ["4: a.weight[0] h.weight[1]"],
    ),
    # A head is tied to the others where one vector scales them all.
    "one_scale_for_all_heads": (
        tokens(lambda m, y: (y.view(2, 5, 2, 4) * m.s).flatten(2), s=weight(4)),
        ["4: s[0] a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "scale_per_head": (
        tokens(lambda m, y: (y.view(2, 5, 2, 4) * m.s).flatten(2), s=weight(2, 1)),
        ["2: s[0] a.weight[0] h.weight[1]", "8 in 2 blocks: a.weight[0] h.weight[1]"],
    ),
    # Tensors of one value.
    "like": (between(lambda m, y: y + torch.ones_like(y) + torch.full_like(y, 2.0) - torch.zeros_like(y)), PASSES),
    "new_ones": (between(lambda m, y: y + y.new_ones(y.shape[0], 8, 4, 4)), PASSES),
    "full_with_fixed_batch": (between(lambda m, y: y + torch.full((2, 8, 4, 4), 3.0)), PASSES),
    "copy_into": (between(lambda m, y: y.new_zeros(y.shape).copy_(y)), PASSES),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])


def write_shifted(canvas, y):
    canvas[:, 2:10, 1:] = y[:, :, :-1]
    return canvas


def test_write_into_a_part():
    """Eight of twelve channels of an empty tensor are written: the other four are no one's, and stay."""
    check(between(lambda m, y: write_shifted(y.new_zeros(y.shape[0], 12, 4, 4), y), outputs=12), PASSES)


def double_first_half(y):
    y[:, :4] *= 2
    return y


def test_write_through_a_view():
    check(
        between(lambda m, y: double_first_half(y)),
        ["4: a.weight[0] h.weight[1]", "4: a.weight[0] h.weight[1]"],
    )
