"""Rules of convolutions: plain, grouped, depthwise, transposed."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.net import IMAGE, Net, between, pointwise, weight
from tests.ops.rules import check, frozen

conv2d = functional.conv2d
UNLABELLED = "convolution of channels without labels"


def layer(inputs, outputs, **options):
    """A 3x3 convolution with bias."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def chain(middle, outputs=8):
    """``h(relu(b(relu(a(image)))))``."""
    return Net(lambda m, x: m.h(m.b(m.a(x).relu()).relu()), a=pointwise(3, 8), b=middle, h=pointwise(outputs, 2))


def standardised(w):
    """As the scaled convolutions of normaliser-free networks do it."""
    rows = functional.batch_norm(w.reshape(1, w.shape[0], -1), None, None, training=True)
    return rows.reshape_as(w)


THROUGH = ["8: a.weight[0] b.weight[0] b.bias[0] h.weight[1]"]
SEPARATE = ["8: a.weight[0] b.weight[1]", "6: b.weight[0] b.bias[0] h.weight[1]"]

CASES = {
    "plain": (chain(layer(8, 6), 6), SEPARATE),
    "strided_dilated": (chain(nn.Conv2d(8, 6, 3, 2, 2, 2), 6), SEPARATE),
    "same": (chain(nn.Conv2d(8, 6, 3, padding="same"), 6), SEPARATE),
    "circular": (chain(layer(8, 6, padding_mode="circular"), 6), SEPARATE),
    "one_channel_is_no_axis": (chain(layer(8, 1), 1), ["8: a.weight[0] b.weight[1]"]),
    "depthwise": (chain(layer(8, 8, groups=8)), THROUGH),
    "depthwise_times_two": (chain(layer(8, 16, groups=8), 16), THROUGH),
    "depthwise_of_the_image": (
        Net(lambda m, x: m.h(m.a(x)), a=layer(3, 6, groups=3), h=pointwise(6, 2)),
        frozen(f"depthwise {UNLABELLED}", 6),
    ),
    "grouped": (
        chain(layer(8, 6, groups=2), 6),
        [
            "8 in 2 blocks: a.weight[0] b.weight[1]",
            "6 in 2 blocks: b.weight[0] b.bias[0] h.weight[1]",
            "2: a.weight[0] b.weight[0] b.weight[1] b.bias[0] h.weight[1]",
        ],
    ),
    "grouped_of_the_image": (
        Net(lambda m, x: m.h(m.a(torch.cat([x, x], 1))), a=layer(6, 8, groups=2), h=pointwise(8, 2)),
        frozen(f"grouped {UNLABELLED}"),
    ),
    "one_output_per_group": (
        chain(layer(8, 4, groups=4), 4),
        ["8 in 4 blocks: a.weight[0] b.weight[1]", "4: a.weight[0] b.weight[0] b.weight[1] b.bias[0] h.weight[1]"],
    ),
    "groups_cut_in_two_ways": (
        chain(nn.Sequential(pointwise(8, 8, groups=2), nn.ReLU(), pointwise(8, 8, groups=4))),
        [
            "8 in 2 blocks: a.weight[0] b.0.weight[1]",
            "8 in 4 blocks: b.0.weight[0] b.2.weight[1]",
            "8 in 4 blocks: b.2.weight[0] h.weight[1]",
            "4 in 2 blocks: b.0.weight[0] b.2.weight[0] b.2.weight[1] h.weight[1]",
        ],
    ),
    "grouped_residual": (
        between(lambda m, y: y + m.b(y), b=layer(8, 8, groups=2)),
        [
            "8 in 2 blocks: a.weight[0] h.weight[1] b.weight[0] b.weight[1] b.bias[0]",
            "2: a.weight[0] h.weight[1] b.weight[0] b.weight[1] b.bias[0]",
        ],
    ),
    "grouped_called_twice": (
        between(lambda m, y: m.b(m.b(y).relu()), b=layer(8, 8, groups=2)),
        [
            "8 in 2 blocks: a.weight[0] h.weight[1] b.weight[0] b.weight[1] b.bias[0]",
            "2: a.weight[0] h.weight[1] b.weight[0] b.weight[1] b.bias[0]",
        ],
    ),
    "transposed": (
        chain(nn.ConvTranspose2d(8, 6, 2, 2), 6),
        ["8: a.weight[0] b.weight[0]", "6: b.weight[1] b.bias[0] h.weight[1]"],
    ),
    "transposed_depthwise": (chain(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), THROUGH),
    "transposed_grouped": (
        chain(nn.ConvTranspose2d(8, 6, 2, 2, groups=2), 6),
        [
            "8 in 2 blocks: a.weight[0] b.weight[0]",
            "6 in 2 blocks: b.weight[1] b.bias[0] h.weight[1]",
            "2: a.weight[0] b.weight[0] b.weight[1] b.bias[0] h.weight[1]",
        ],
    ),
    "transposed_depthwise_times_two": (
        chain(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), 16),
        [
            "8: a.weight[0] b.weight[0] b.weight[1] b.bias[0] h.weight[1]",
            "16 in 8 blocks: b.weight[1] b.bias[0] h.weight[1]",
        ],
    ),
    # Weights that are computed, or read in two ways.
    "computed_weight": (
        between(lambda m, y: conv2d(y, m.w * 2), outputs=6, w=weight(6, 8, 1, 1)),
        ["6: w[0] h.weight[1]", "8: w[1] a.weight[0]"],
    ),
    "computed_weight_of_groups": (
        between(lambda m, y: conv2d(y, m.w * 2, groups=2), outputs=6, w=weight(6, 4, 1, 1)),
        [
            "w[0] stays, 6: grouped convolution with a computed weight",
            *frozen("grouped convolution with a computed weight"),
        ],
    ),
    "branches_in_one_weight": (
        between(
            lambda m, y: conv2d(y, m.u + functional.pad(m.v, (1, 1, 1, 1))),
            8,
            6,
            u=weight(6, 8, 3, 3),
            v=weight(6, 8, 1, 1),
        ),
        ["6: u[0] v[0] h.weight[1]", "8: u[1] v[1] a.weight[0]"],
    ),
    "plain_then_grouped": (
        Net(
            lambda m, x: m.h(conv2d(m.b(x), m.w).relu() + conv2d(m.a(x), m.w, groups=2)),
            a=pointwise(3, 8),
            b=pointwise(3, 4),
            w=weight(6, 4, 1, 1),
            h=pointwise(6, 2),
        ),
        ["6 in 2 blocks: w[0] h.weight[1]", "4: w[1] a.weight[0] b.weight[0]"],
    ),
    "grouped_then_plain": (
        Net(
            lambda m, x: m.h(conv2d(m.a(x), m.w, groups=2).relu() + conv2d(m.b(x), m.w)),
            a=pointwise(3, 8),
            b=pointwise(3, 4),
            w=weight(6, 4, 1, 1),
            h=pointwise(6, 2),
        ),
        ["6 in 2 blocks: w[0] h.weight[1]", "4: w[1] a.weight[0] b.weight[0]", "2: w[0] w[1] a.weight[0] h.weight[1]"],
    ),
    "standardised_weight": (
        between(lambda m, y: conv2d(y, m.w - m.w.mean((1, 2, 3), keepdim=True)), outputs=6, w=weight(6, 8, 1, 1)),
        ["6: w[0] h.weight[1]", "8: w[1] a.weight[0]"],
    ),
    "standardised_by_batch_norm": (
        between(lambda m, y: conv2d(y, standardised(m.w)), outputs=6, w=weight(6, 8, 1, 1)),
        ["6: w[0] h.weight[1]", "8: w[1] a.weight[0]"],
    ),
    "normalised_weight": (
        between(lambda m, y: conv2d(y, functional.normalize(m.w)), outputs=6, w=weight(6, 8, 1, 1)),
        ["6: w[0] h.weight[1]", "8: w[1] a.weight[0]"],
    ),
    "weight_that_an_image_makes": (
        Net(
            lambda m, x: m.h(
                conv2d(m.a(x).view(1, 16, 4, 4), m.k(x.mean((2, 3))).view(16, 1, 1, 1), groups=16).view(2, 8, 4, 4)
            ),
            a=pointwise(3, 8),
            k=nn.Linear(3, 8, bias=False),
            h=pointwise(8, 2),
        ),
        ["8: a.weight[0] k.weight[0] h.weight[1]"],
    ),
    "unbatched": (
        Net(lambda m, x: m.h(m.a(x[0])), a=pointwise(3, 8), h=pointwise(8, 2)),
        [f"{x}.weight[0] stays, {n}: convolution of an unbatched input" for x, n in (("a", 8), ("h", 2))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])


@pytest.mark.parametrize(
    ("conv", "transposed", "shape"),
    [
        (nn.Conv1d, nn.ConvTranspose1d, (3, 8)),
        (nn.Conv3d, nn.ConvTranspose3d, (3, 2, 3, 3)),
        (nn.Conv2d, nn.ConvTranspose2d, IMAGE),
    ],
)
def test_any_number_of_axes(conv, transposed, shape):
    net = Net(
        lambda m, x: m.h(m.d(m.b(m.a(x).relu()).relu())),
        a=conv(3, 8, 2),
        b=transposed(8, 4, 2),
        d=conv(4, 4, 1, groups=2),
        h=conv(4, 2, 1),
    )
    want = [
        "8: a.weight[0] a.bias[0] b.weight[0]",
        "4 in 2 blocks: b.weight[1] b.bias[0] d.weight[1]",
        "4 in 2 blocks: d.weight[0] d.bias[0] h.weight[1]",
        "2: b.weight[1] b.bias[0] d.weight[0] d.weight[1] d.bias[0] h.weight[1]",
    ]
    check(net, want, shape)


def test_groups_follow_the_channels():
    """Depthwise convolutions lose whole groups; grouped ones keep their number."""
    laboratory = check(
        between(lambda m, y: m.c(m.b(y)), b=layer(8, 8, groups=8), c=layer(8, 8, groups=2)),
        [
            "8 in 2 blocks: a.weight[0] b.weight[0] b.bias[0] c.weight[1]",
            "8 in 2 blocks: h.weight[1] c.weight[0] c.bias[0]",
            "2: a.weight[0] h.weight[1] b.weight[0] b.bias[0] c.weight[0] c.weight[1] c.bias[0]",
        ],
    )
    slim = laboratory.slim({"a.weight": (0, 1, 4, 7)})
    groups = [node.args[6] for node in slim.graph.nodes if "conv2d" in str(node.target) and len(node.args) > 6]
    assert groups == [4, 2]
    assert slim.parameter("b.weight").shape == (4, 1, 3, 3)
    assert slim.parameter("c.weight").shape == (8, 2, 3, 3)


def test_a_grouped_weight_keeps_other_columns_in_every_group():
    laboratory = check(*CASES["grouped"])
    dense = laboratory.traced.parameter("b.weight")
    slim = laboratory.slim({"a.weight": (0, 3, 5, 6)}).parameter("b.weight")
    assert torch.equal(slim, torch.cat([dense[:3, [0, 3]], dense[3:, [1, 2]]]))
