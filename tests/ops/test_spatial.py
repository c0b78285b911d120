"""Rules of spatial ops: channels pass, what runs along a labelled axis freezes it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.net import Net, between, pointwise, tokens
from tests.ops.rules import PASSES, check, frozen, passes


def unpooled(y):
    return functional.max_unpool2d(*functional.max_pool2d(y, 2, return_indices=True), 2)


CASES = {
    "max_pool": (between(lambda m, y: functional.max_pool2d(y, 2)), PASSES),
    "max_pool_with_indices": (between(lambda m, y: functional.max_pool2d(y, 2, return_indices=True)[0]), PASSES),
    "max_unpool": (between(lambda m, y: unpooled(y)), PASSES),
    "average_pool": (between(lambda m, y: functional.avg_pool2d(y, 2)), PASSES),
    "norm_pool": (between(lambda m, y: functional.lp_pool2d(y, 2, 2)), PASSES),
    "adaptive_average": (between(lambda m, y: functional.adaptive_avg_pool2d(y, 3)), PASSES),
    "adaptive_maximum": (between(lambda m, y: functional.adaptive_max_pool2d(y, 3)), PASSES),
    "nearest": (between(lambda m, y: functional.interpolate(y, scale_factor=2)), PASSES),
    "nearest_exact": (between(lambda m, y: functional.interpolate(y, (7, 5), mode="nearest-exact")), PASSES),
    "bilinear": (between(lambda m, y: functional.interpolate(y, (7, 5), mode="bilinear")), PASSES),
    "bilinear_smoothed": (
        between(lambda m, y: functional.interpolate(y, (3, 3), mode="bilinear", antialias=True)),
        PASSES,
    ),
    "bicubic": (between(lambda m, y: functional.interpolate(y, (7, 5), mode="bicubic")), PASSES),
    "pool_of_tokens": (
        tokens(lambda m, y: functional.adaptive_avg_pool1d(y, 2), outputs=2),
        frozen("pooled or resized along this axis"),
    ),
    "sampled_where_a_layer_says": (
        Net(
            lambda m, x: m.h(functional.grid_sample(m.a(x), m.g(x).permute(0, 2, 3, 1), align_corners=False)),
            a=pointwise(3, 8),
            g=pointwise(3, 2),
            h=pointwise(8, 2),
        ),
        [*PASSES, "g.weight[0] stays, 2: says where to sample"],
    ),
    "pixel_shuffle": (between(lambda m, y: functional.pixel_shuffle(y, 2), outputs=2), passes(2)),
    "pixel_unshuffle": (between(lambda m, y: functional.pixel_unshuffle(y, 2), outputs=32), PASSES),
    "pixel_shuffle_and_back": (
        between(lambda m, y: functional.pixel_unshuffle(functional.pixel_shuffle(y, 2), 2)),
        passes(2),
    ),
    "unfold": (between(lambda m, y: functional.unfold(y, 2).unsqueeze(-1), outputs=32), PASSES),
    "fold": (between(lambda m, y: functional.fold(y.flatten(2), (8, 8), 2, stride=2), outputs=2), passes(2)),
    "channel_shuffle": (between(lambda m, y: functional.channel_shuffle(y, 4)), PASSES),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (
            (
                nn.Conv1d(3, 8, 1),
                nn.MaxPool1d(2),
                nn.AvgPool1d(2),
                nn.Upsample(scale_factor=2, mode="linear"),
                nn.AdaptiveAvgPool1d(2),
                nn.Conv1d(8, 2, 1),
            ),
            (3, 16),
        ),
        (
            (
                nn.Conv3d(3, 8, 1),
                nn.MaxPool3d(2),
                nn.AvgPool3d(1),
                nn.Upsample(scale_factor=2, mode="trilinear"),
                nn.AdaptiveAvgPool3d(2),
                nn.Conv3d(8, 2, 1),
            ),
            (3, 4, 4, 4),
        ),
    ],
)
def test_one_and_three_axes(layers, shape):
    net = nn.Sequential(*layers)
    check(net, ["8: 0.weight[0] 0.bias[0] 5.weight[1]"], shape)


def test_pixel_shuffle_keeps_the_four_channels_of_a_kept_one():
    laboratory = check(*CASES["pixel_shuffle"])
    dense = laboratory.traced.parameter("a.weight")
    assert torch.equal(laboratory.slim({"a.weight": (1,)}).parameter("a.weight"), dense[4:])
