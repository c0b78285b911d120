"""What becomes of single layers, tensors and arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import curlfx
from benchmarks.trial import randomise, relative_error
from curlfx.errors import PlanError, TraceError, UsageError
from curlfx.graph import trace
from curlfx.inplace import InPlaceWarning, slim_
from curlfx.inplace.attributes import layer_widths
from curlfx.inplace.calls import calls_of
from tests.inplace import zoo

ONE_HEAD = {"1.qkv.weight#blocks": 1}


def image_net(*layers: nn.Module, out: int = 8) -> nn.Sequential:
    """Layers between a convolution to 8 channels and one to 2."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Conv2d(out, 2, 1))


def token_net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), *layers, nn.Linear(8, 2))


def narrowed(net: nn.Module, inputs: Any = None, **widths: int) -> zoo.Plan:
    """Narrow every group to given widths, or to 5 of 8 channels, and insist on the right output."""
    inputs = zoo.image(8) if inputs is None else inputs
    plan = zoo.planned(net.eval(), inputs, widths or {"*": 5})
    assert slim_(net, plan.made, inputs) is net
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    assert relative_error(net(*given), plan.slim.module(*given)) <= 1e-5
    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "position", "attributes"),
    [
        (image_net(nn.ReLU()), 0, {"out_channels": 5, "in_channels": 3, "groups": 1}),
        (image_net(nn.ReLU()), 2, {"out_channels": 2, "in_channels": 5}),
        (image_net(nn.Conv2d(8, 8, 3, groups=8)), 1, {"in_channels": 5, "out_channels": 5, "groups": 5}),
        (image_net(nn.ConvTranspose2d(8, 6, 3), out=6), 1, {"in_channels": 5, "out_channels": 5}),
        (image_net(nn.ConvTranspose2d(8, 8, 2, groups=8)), 1, {"in_channels": 5, "out_channels": 5, "groups": 5}),
        (image_net(nn.BatchNorm2d(8)), 1, {"num_features": 5}),
        (image_net(nn.BatchNorm2d(8, affine=False)), 1, {"num_features": 5}),
        (image_net(nn.BatchNorm2d(8, affine=False, track_running_stats=False)), 1, {"num_features": 5}),
        (image_net(nn.InstanceNorm2d(8, affine=True)), 1, {"num_features": 5}),
        (image_net(nn.InstanceNorm2d(8)), 1, {"num_features": 5}),
        (image_net(nn.GroupNorm(1, 8)), 1, {"num_groups": 1, "num_channels": 5}),
        (image_net(nn.PReLU(8)), 1, {"num_parameters": 5}),
    ],
)
def test_layers_of_images(net, position, attributes):
    narrowed(randomise(net))
    assert {name: getattr(net[position], name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (nn.Linear(8, 8), {"in_features": 5, "out_features": 5}),
        (nn.LayerNorm(8), {"normalized_shape": (5,)}),
        (nn.LayerNorm(8, elementwise_affine=False), {"normalized_shape": (5,)}),
        (nn.RMSNorm(8), {"normalized_shape": (5,)}),
    ],
)
def test_layers_of_tokens(layer, attributes):
    net = randomise(token_net(layer))
    narrowed(net, torch.randn(2, 4, 3))
    assert {name: getattr(net[1], name) for name in attributes} == attributes


def test_group_norm_of_several_groups():
    net = randomise(image_net(nn.GroupNorm(2, 8)))
    narrowed(net, **{"0.weight": 6})
    assert (net[1].num_groups, net[1].num_channels) == (2, 6)


def test_group_norm_that_loses_a_group():
    net = randomise(image_net(nn.GroupNorm(2, 8)))
    narrowed(net, **{"0.weight#blocks": 1})
    assert (net[1].num_groups, net[1].num_channels) == (1, 4)


def test_grouped_convolution():
    net = image_net(nn.Conv2d(8, 12, 3, groups=2), out=12)
    narrowed(net, **{"0.weight": 6, "1.weight": 4})
    assert (net[1].in_channels, net[1].out_channels, net[1].groups) == (6, 4, 2)


def test_grouped_convolution_that_loses_a_group():
    net = image_net(nn.Conv2d(8, 12, 3, groups=2), out=12)
    narrowed(net, **{"0.weight#blocks": 1})
    assert (net[1].in_channels, net[1].out_channels, net[1].groups) == (4, 6, 1)


def test_embedding():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.words(x))

    net, inputs = Words(), torch.randint(10, (2, 4))
    narrowed(net, inputs)
    assert (net.words.num_embeddings, net.words.embedding_dim, net.head.in_features) == (10, 5, 5)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("more", [{}, {"kdim": 6, "vdim": 10}])
def test_attention_is_read_off_its_calls(need_weights, more):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **more)

        def forward(self, q, k, v):
            return self.attention(q, k, v, need_weights=need_weights)[0]

    net = Attending()
    traced = trace(net, tuple(torch.randn(2, 5, more.get(name, 12)) for name in ("", "kdim", "vdim")))
    calls = calls_of(net, traced, traced)[id(net.attention)]
    widths = layer_widths(net.attention, [call.slim for call in calls.own])
    assert widths == {
        "embed_dim": 12, "num_heads": 3, "head_dim": 4, "kdim": more.get("kdim", 12), "vdim": more.get("vdim", 12)
    }  # fmt: skip


class Heads(nn.Module):
    """Attention of the usual shape, with its widths in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.num_heads, self.head_dim = 16, 2, 8
        self.sizes = [16, 16, 16]
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        attention = functional.softmax(q * self.scale @ k.transpose(-2, -1), -1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "heads", "head_dim", "rows"),
    [({"1.qkv.weight": 20, "1.proj.weight": 16}, 2, 5, 30), (ONE_HEAD, 1, 8, 24)],
)
def test_widths_in_attributes_follow_by_name(widths, heads, head_dim, rows):
    net = nn.Sequential(nn.Linear(3, 16), Heads(), nn.Linear(16, 2))
    narrowed(net, torch.randn(2, 7, 3), **widths)
    assert (net[1].head_dim, net[1].num_heads, net[1].qkv.out_features) == (head_dim, heads, rows)
    assert (net[1].dim, net[1].sizes) == (16, [16, 16, 16])


def test_tensors_keep_their_kind():
    net = image_net(nn.BatchNorm2d(8)).to(memory_format=torch.channels_last).double()
    net[0].weight.requires_grad_(False)
    net[0].weight.decay = False
    net[0].bias.grad = torch.ones(8).double()
    plan = zoo.planned(net.train(), zoo.image(8).double(), {"*": 5})
    kept = list(plan.made.keep["0.weight"])
    weight, bias, mean = net[0].weight.clone(), net[0].bias.clone(), net[1].running_mean.clone()
    assert slim_(net, plan.made, zoo.image(8).double()) is net
    assert torch.equal(net[0].weight, weight[kept])
    assert torch.equal(net[0].bias, bias[kept])
    assert torch.equal(net[1].running_mean, mean[kept])
    assert isinstance(net[0].weight, nn.Parameter)
    assert not net[0].weight.requires_grad
    assert net[0].bias.requires_grad
    assert net[0].weight.decay is False
    assert net[0].bias.grad is None
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert set(net.state_dict()) == set(plan.slim.module.state_dict())


class Holding(nn.Module):
    """Tensors in every place that is not a parameter's or a buffer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.twin = nn.Linear(3, 8, bias=False)
        self.twin.weight = self.first.weight
        self.scale = torch.rand(8)
        self.held = {"list": [self.first.bias], "tuple": (1, self.first.weight)}
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 4, 6, 5]))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * self.scale + self.twin(x) + self.held["list"][0]
        return self.last(y.index_select(-1, self.order))


def test_tensors_in_other_places_follow():
    net, inputs = Holding(), torch.randn(2, 3)
    scale = net.scale
    plan = narrowed(net, inputs)
    (kept,) = plan.made.keep.values()
    assert net.twin.weight is net.first.weight
    assert net.held["list"][0] is net.first.bias
    assert net.held["tuple"] == (1, net.first.weight)
    assert torch.equal(net.scale, scale[list(kept)])
    assert [kept[position] for position in net.order] == [c for c in (3, 1, 0, 2, 7, 4, 6, 5) if c in kept]


def test_weights_that_are_computed():
    net = image_net(nn.ReLU())
    parametrizations.weight_norm(net[2])
    narrowed(net)
    assert net[2].in_channels == net[2].weight.shape[1] == net[2].parametrizations.weight.original1.shape[1] == 5
    assert set(dict(net[2].named_parameters())) == {
        "bias", "parametrizations.weight.original0", "parametrizations.weight.original1"
    }  # fmt: skip


class Standardised(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, self.weight - mean, self.bias, self.stride, self.padding)


def test_standardised_weights_that_lose_rows():
    net = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    weight = net[0].weight.clone()
    plan = narrowed(net)
    (kept,) = plan.made.keep.values()
    assert torch.equal(net[0].weight, weight[list(kept)])


def test_standardised_weights_that_lose_columns():
    net = image_net(Standardised(8, 8, 3))
    plan = zoo.planned(net, zoo.image(8), {"0.weight": 5})
    with pytest.warns(
        InPlaceWarning,
        match=r"module '1' \(inplace/test_layers.py:\d+\): '1\.weight' holds other values in the narrowed module",
    ):
        result = slim_(net, plan.made, zoo.image(8))
    inputs = zoo.image(8)
    assert relative_error(result.eval()(inputs), plan.slim.module.eval()(inputs)) <= 1e-5
    assert net[1].in_channels == 8


def test_a_plan_that_removes_nothing():
    net, inputs = image_net(nn.ReLU()), zoo.image(8)
    plan = zoo.planned(net, inputs, {})
    before = list(net.parameters())
    assert slim_(net, plan.made, inputs) is net
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))


def test_a_graph_in_hand_has_the_weights_of_the_model():
    net, inputs = image_net(nn.ReLU()), zoo.image(8)
    plan = zoo.planned(net, inputs, {"0.weight": 5})
    with torch.no_grad():
        net[0].weight.add_(1)
    kept, weight = list(plan.made.keep["0.weight"]), net[0].weight.clone()
    old = plan.traced.parameter("0.weight").clone()
    assert slim_(net, plan.made, traced=plan.traced) is net
    assert torch.equal(net[0].weight, weight[kept])
    assert torch.equal(plan.traced.parameter("0.weight"), old)


def test_a_function_in_place_of_forward():
    class Undecided(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = image_net(nn.ReLU())

        def forward(self, x):
            return self.body(x if x.sum() > 0 else -x)

    def body(model, x):
        return model.body(x)

    net, inputs = Undecided(), zoo.image(8)
    plan = zoo.planned(net, inputs, forward=body)
    with pytest.raises(TraceError):
        slim_(net, plan.made, inputs)
    assert slim_(net, plan.made, inputs, forward=body) is net
    assert relative_error(net.body(inputs), plan.slim.module(inputs)) <= 1e-5
    assert "forward" not in vars(net)


def test_a_network_that_runs_in_its_own_type_only():
    class Cast(nn.Sequential):
        def forward(self, x):
            return super().forward(x.to(torch.float32))

    net = Cast(*image_net(nn.ReLU()))
    narrowed(net)
    assert net[0].out_channels == 5


def test_neither_inputs_nor_a_graph():
    net = image_net()
    plan = zoo.planned(net, zoo.image(8))
    with pytest.raises(UsageError, match="slim_ needs example_inputs, or the model's graph as traced="):
        slim_(net, plan.made)
    assert net[0].out_channels == 8


def test_a_plan_of_another_network():
    net = image_net(nn.BatchNorm2d(8))
    plan = zoo.planned(image_net(nn.ReLU()), zoo.image(8))
    with pytest.raises(PlanError, match="this plan is for another network"):
        slim_(net, plan.made, zoo.image(8))
    assert net[0].out_channels == 8


def test_the_public_name():
    assert curlfx.slim_ is slim_
