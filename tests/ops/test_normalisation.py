"""Rules of normalisations: what belongs to a channel goes with it; whose statistics change is said."""

import pytest
from torch import nn
from torch.nn import functional

from tests.networks.net import TOKENS, Net, between, dense, pointwise, tokens
from tests.ops.rules import PASSES, check, frozen

AFFINE = "n.weight[0] n.bias[0]"
STATISTICS = "n.running_mean[0] n.running_var[0]"


def normalised(norm):
    return between(lambda m, y: m.n(y), n=norm)


def normalised_tokens(norm):
    return tokens(lambda m, y: m.n(y), n=norm)


def group(words, mark=""):
    return [f"8{mark}: a.weight[0] h.weight[1] {words}".strip()]


CASES = {
    "batch": (normalised(nn.BatchNorm2d(8)), group(f"{AFFINE} {STATISTICS}")),
    "batch_without_affine": (normalised(nn.BatchNorm2d(8, affine=False)), group(STATISTICS)),
    "batch_of_the_image": (
        Net(lambda m, x: m.h(m.a(m.n(x))), n=nn.BatchNorm2d(3), a=pointwise(3, 8), h=pointwise(8, 2)),
        PASSES,
    ),
    "batch_of_tokens": (
        tokens(lambda m, y: m.n(y.mT).mT, n=nn.BatchNorm1d(8)),
        group(f"{AFFINE} {STATISTICS}"),
    ),
    "batch_over_the_token_axis": (normalised_tokens(nn.BatchNorm1d(5)), PASSES),
    "instance": (normalised(nn.InstanceNorm2d(8, affine=True)), group(AFFINE)),
    "instance_tracked": (
        normalised(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        group(f"{AFFINE} {STATISTICS}"),
    ),
    "group": (
        normalised(nn.GroupNorm(2, 8)),
        [
            "8 in 2 blocks, statistics: a.weight[0] h.weight[1] n.weight[0] n.bias[0]",
            "2: a.weight[0] h.weight[1] n.weight[0] n.bias[0]",
        ],
    ),
    "group_without_affine": (
        normalised(nn.GroupNorm(2, 8, affine=False)),
        ["8 in 2 blocks, statistics: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "group_of_all": (normalised(nn.GroupNorm(1, 8)), group(AFFINE, ", statistics")),
    "group_of_one": (normalised(nn.GroupNorm(8, 8)), group(AFFINE)),
    "group_after_group": (
        normalised(nn.Sequential(nn.GroupNorm(2, 8, affine=False), nn.GroupNorm(4, 8, affine=False))),
        [
            "8 in 4 blocks, statistics: a.weight[0] h.weight[1]",
            "2: a.weight[0] h.weight[1]",
            "4 in 2 blocks, statistics: a.weight[0] h.weight[1]",
        ],
    ),
    "layer": (normalised_tokens(nn.LayerNorm(8)), group(AFFINE, ", statistics")),
    "layer_without_affine": (
        normalised_tokens(nn.LayerNorm(8, elementwise_affine=False)),
        group("", ", statistics"),
    ),
    "layer_of_all": (normalised(nn.LayerNorm([8, 4, 4])), group(AFFINE, ", statistics")),
    "layer_of_space": (normalised(nn.LayerNorm([4, 4])), PASSES),
    "layer_of_the_input": (
        Net(lambda m, x: m.h(m.a(m.n(x))), n=nn.LayerNorm(3), a=dense(3, 8), h=dense(8, 2)),
        PASSES,
    ),
    "layer_of_heads": (
        tokens(lambda m, y: m.n(y.unflatten(2, (2, 4))).flatten(2), n=nn.LayerNorm(4)),
        ["4, statistics: a.weight[0] h.weight[1] n.weight[0] n.bias[0]", "2: a.weight[0] h.weight[1]"],
    ),
    "layer_after_layer": (
        normalised_tokens(nn.Sequential(nn.LayerNorm(8, bias=False), nn.LayerNorm(8, bias=False))),
        group("n.0.weight[0] n.1.weight[0]", ", statistics"),
    ),
    "rms": (normalised_tokens(nn.RMSNorm(8)), group("n.weight[0]", ", statistics")),
    "rms_with_eps": (normalised_tokens(nn.RMSNorm(8, eps=0.1)), group("n.weight[0]", ", statistics")),
    "length_one": (between(lambda m, y: functional.normalize(y)), PASSES),
    "local_response": (normalised(nn.LocalResponseNorm(2)), frozen("pooled or resized along this axis")),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])


def test_frozen_groups_change_no_statistics():
    """The groups of GroupNorm that stay whole are not reported."""
    net = Net(lambda m, x: m.n(m.a(x)), a=pointwise(3, 8), n=nn.GroupNorm(2, 8))
    assert not check(net, []).coupling.groups


def test_layer_norm_literal_follows():
    slim = check(*CASES["layer"], TOKENS).slim({"a.weight": (0, 1, 5)})
    assert [node.args[1] for node in slim.graph.nodes if "layer_norm" in str(node.target)] == [[3]]


def test_groups_of_one_follow_the_channels():
    slim = check(*CASES["group_of_one"]).slim({"a.weight": (0, 1, 5)})
    assert [node.args[1] for node in slim.graph.nodes if "group_norm" in str(node.target)] == [3]
