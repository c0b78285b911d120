"""`Slim` deletes channels everywhere at once, and nothing else."""

import copy
import re
from dataclasses import dataclass
from textwrap import dedent
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.trial import random_keep, relative_error
from curlfx.coupling import Coupling, couple
from curlfx.errors import InvariantError, KeepError
from curlfx.graph import TracedModel, show, trace
from curlfx.passes.gate import Gate, set_gates
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from tests.networks.net import IMAGE, TOKENS, Net, dense, drawn, pointwise, prepared
from tests.oracles import train_a_step

KEEP = {"stem.weight": (0, 2), "conv1.weight": (1, 2, 4)}


class Residual(nn.Module):
    """Stem, one block of two convolutions with a shortcut, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(x + self.conv2(y)).mean((2, 3)))


def made(net: nn.Module, *shapes: tuple[int, ...]) -> tuple[TracedModel, Coupling]:
    traced = trace(prepared(net), drawn(*(shapes or (IMAGE,))))
    return traced, couple(traced)


def slimmed(net: nn.Module, keep, *shapes: tuple[int, ...]) -> nn.Module:
    traced, coupling = made(net, *shapes)
    return Slim(coupling, keep)(traced).module


@pytest.fixture(scope="module")
def residual() -> tuple[TracedModel, Coupling]:
    return made(Residual())


def test_slim_reaches_every_coupled_tensor(residual):
    traced, coupling = residual
    assert show(Slim(coupling, KEEP)(traced)) == dedent("""\
        %stem.weight = parameter : f64[2, 3, 3, 3]
        %bn.weight = parameter : f64[2]
        %bn.bias = parameter : f64[2]
        %conv1.weight = parameter : f64[3, 2, 3, 3]
        %bn1.weight = parameter : f64[3]
        %bn1.bias = parameter : f64[3]
        %conv2.weight = parameter : f64[2, 3, 1, 1]
        %conv2.bias = parameter : f64[2]
        %fc.weight = parameter : f64[2, 2]
        %fc.bias = parameter : f64[2]
        %bn.running_mean = buffer : f64[2]
        %bn.running_var = buffer : f64[2]
        %bn1.running_mean = buffer : f64[3]
        %bn1.running_var = buffer : f64[3]
        %x = input : f64[2, 3, 4, 4]
        %conv2d = aten.conv2d.default(%x, %stem.weight, None, [1, 1], [1, 1]) : f64[2, 2, 4, 4]
        %batch_norm = aten.batch_norm.default(%conv2d, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var, False, 0.1, 1e-05, True) : f64[2, 2, 4, 4]
        %relu = aten.relu.default(%batch_norm) : f64[2, 2, 4, 4]
        %conv2d_1 = aten.conv2d.default(%relu, %conv1.weight, None, [1, 1], [1, 1]) : f64[2, 3, 4, 4]
        %batch_norm_1 = aten.batch_norm.default(%conv2d_1, %bn1.weight, %bn1.bias, %bn1.running_mean, %bn1.running_var, False, 0.1, 1e-05, True) : f64[2, 3, 4, 4]
        %relu_1 = aten.relu.default(%batch_norm_1) : f64[2, 3, 4, 4]
        %conv2d_2 = aten.conv2d.default(%relu_1, %conv2.weight, %conv2.bias) : f64[2, 2, 4, 4]
        %add = aten.add.Tensor(%relu, %conv2d_2) : f64[2, 2, 4, 4]
        %relu_2 = aten.relu.default(%add) : f64[2, 2, 4, 4]
        %mean = aten.mean.dim(%relu_2, [2, 3]) : f64[2, 2]
        %linear = aten.linear.default(%mean, %fc.weight, %fc.bias) : f64[2, 2]
        return (%linear,)""")  # noqa: E501 - the graph as it prints


def test_kept_elements_are_the_right_ones(residual):
    traced, coupling = residual
    slim = Slim(coupling, KEEP)(traced)
    dense, thin = traced.tensors(), slim.tensors()
    stem, inner = list(KEEP["stem.weight"]), list(KEEP["conv1.weight"])
    assert torch.equal(thin["stem.weight"], dense["stem.weight"][stem])
    assert torch.equal(thin["conv1.weight"], dense["conv1.weight"][inner][:, stem])
    assert torch.equal(thin["conv2.weight"], dense["conv2.weight"][stem][:, inner])
    assert torch.equal(thin["conv2.bias"], dense["conv2.bias"][stem])
    assert torch.equal(thin["fc.weight"], dense["fc.weight"][:, stem])
    assert torch.equal(thin["fc.bias"], dense["fc.bias"])
    for part in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(thin[f"bn.{part}"], dense[f"bn.{part}"][stem])
        assert torch.equal(thin[f"bn1.{part}"], dense[f"bn1.{part}"][inner])
    assert torch.equal(thin["bn.num_batches_tracked"], dense["bn.num_batches_tracked"])


@pytest.mark.parametrize("kept", [(), (1, 0), (0, 0), (-1, 2), (0, 4)])
def test_slim_refuses(residual, kept):
    traced, coupling = residual
    with pytest.raises(KeepError, match=re.escape("keep['stem.weight'] = ")):
        Slim(coupling, {"stem.weight": kept})(traced)


def test_slim_refuses_an_unknown_group(residual):
    traced, coupling = residual
    with pytest.raises(KeepError, match=r"no such coupling group; did you mean 'conv\d\.weight'"):
        Slim(coupling, {"conv2.weight": (0,)})(traced)


def test_slim_refuses_another_network(residual):
    _, coupling = residual
    other, _ = made(Net(lambda m, x: m.h(m.a(x)), a=pointwise(3, 4), h=pointwise(4, 2)))
    with pytest.raises(InvariantError, match="is not in this graph"):
        Slim(coupling, KEEP)(other)


def test_the_input_stays_as_it_is(residual):
    traced, coupling = residual
    text, code, state = show(traced), traced.module.code, copy.deepcopy(traced.module.state_dict())
    slim = Slim(coupling, KEEP)(traced)
    with torch.no_grad():
        for tensor in slim.tensors().values():
            tensor.zero_()
    assert (show(traced), traced.module.code) == (text, code)
    assert all(torch.equal(tensor, state[name]) for name, tensor in traced.module.state_dict().items())


@pytest.mark.parametrize("keep", [{}, {"stem.weight": (0, 1, 2, 3), "conv1.weight": tuple(range(5))}])
def test_nothing_to_delete(residual, keep):
    traced, coupling = residual
    result, (record,) = run(traced, [Slim(coupling, keep)])
    assert not record.changed
    assert show(result) == show(traced)


def test_only_what_changes_is_copied(residual):
    traced, coupling = residual
    result, _ = run(traced, [Slim(coupling, {"conv1.weight": (0, 1)})], own_weights=False)
    before, after = traced.tensors(), result.tensors()
    changed = {name for name in before if after[name] is not before[name]}
    assert changed == {
        "conv1.weight",
        "conv2.weight",
        *(f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
    }


def test_slim_equals_gating(residual):
    traced, coupling = residual
    gated, _ = run(traced, [Gate(coupling)])
    for seed in range(5):
        keep = random_keep(coupling.groups, 0.5, seed)
        set_gates(gated.module, torch.from_numpy(coupling.alive(keep)))
        slim = Slim(coupling, keep)(traced).module
        for batch in (1, 2, 3):
            inputs = drawn(IMAGE, batch=batch)
            assert relative_error(slim(*inputs), gated.module(*inputs)) < 1e-12


def test_slim_twice(residual):
    """Six of nine channels, then three of those: the same as three at once."""
    traced, coupling = residual
    once = Slim(coupling, {"stem.weight": (1, 3), "conv1.weight": (2, 4)})(traced)
    half = Slim(coupling, {"stem.weight": (1, 2, 3), "conv1.weight": (0, 2, 4)})(traced)
    twice = Slim(couple(half), {"stem.weight": (0, 2), "conv1.weight": (1, 2)})(half)
    assert show(twice) == show(once)
    assert all(torch.equal(tensor, once.tensors()[name]) for name, tensor in twice.tensors().items())


def test_the_result_is_a_network_like_the_original(residual):
    traced, coupling = residual
    slim = Slim(coupling, KEEP)(traced).module
    dense = prepared(Residual())
    assert list(slim.state_dict()) == list(dense.state_dict())
    assert [name for name, _ in slim.named_parameters()] == [name for name, _ in dense.named_parameters()]
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in slim.parameters())
    before, after = train_a_step(slim, drawn(IMAGE, batch=3))
    assert after < before
    mean = slim.get_buffer("bn.running_mean").clone()
    slim.train()(*drawn(IMAGE, batch=3))
    assert not torch.equal(slim.get_buffer("bn.running_mean"), mean)
    assert torch.equal(copy.deepcopy(slim).eval()(*drawn(IMAGE)), slim.eval()(*drawn(IMAGE)))


def test_frozen_parameters_stay_frozen():
    net = Residual()
    net.stem.weight.requires_grad_(False)
    slim = slimmed(net, KEEP)
    assert {name for name, p in slim.named_parameters() if not p.requires_grad} == {"stem.weight"}


class Tied(nn.Module):
    """Two convolutions that share one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.second = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.second.weight = self.first.weight
        self.stem, self.head = pointwise(3, 4), pointwise(4, 2)

    def forward(self, x):
        return self.head(self.second(self.middle(self.first(self.stem(x)).relu())))


def test_tied_weights_stay_one():
    """One tensor under two names: what it makes is one group, what it reads is another."""
    net, (x,) = prepared(Tied()), drawn(IMAGE)
    traced, coupling = made(net)
    out, into = [0, 3], [1, 2]
    owner = {site.name: group.id for group in coupling.groups for site in group.sites}
    slim = Slim(coupling, {owner["first.bias"]: out, owner["middle.bias"]: into})(traced).module
    assert slim.get_parameter("first.weight") is slim.get_parameter("second.weight")
    assert slim.get_parameter("first.weight").shape == (2, 2, 1, 1)
    weight = net.first.weight[out][:, into]
    y = functional.conv2d(net.stem(x)[:, into], weight, net.first.bias[out]).relu()
    y = functional.conv2d(y, net.middle.weight[into][:, out], net.middle.bias[into])
    y = functional.conv2d(y, weight, net.second.bias[out])
    torch.testing.assert_close(slim(x), functional.conv2d(y, net.head.weight[:, out]), rtol=1e-12, atol=1e-12)


def normalised(x, axes, eps, *, centred=True):
    """What a normalisation without affine parameters computes, from its definition."""
    x = x - x.mean(axes, keepdim=True) if centred else x
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + eps)


def of_tokens(norm: nn.Module) -> Net:
    return Net(lambda m, x: m.b(m.n(m.a(x))), a=dense(3, 8), n=norm, b=dense(8, 2))


@pytest.mark.parametrize(("norm", "centred"), [(nn.LayerNorm(8), True), (nn.RMSNorm(8, eps=1e-3), False)])
def test_statistics_over_the_kept_features(norm, centred):
    """LayerNorm and RMSNorm of three of eight features, written out by hand on those three alone."""
    net, (x,), kept = prepared(of_tokens(norm)), drawn(TOKENS), [1, 4, 6]
    slim = slimmed(net, {"a.weight": kept}, TOKENS)
    y = normalised(x @ net.a.weight[kept].T, -1, net.n.eps, centred=centred) * net.n.weight[kept]
    y = y + net.n.bias[kept] if centred else y
    torch.testing.assert_close(slim(x), y @ net.b.weight[:, kept].T, rtol=1e-12, atol=1e-12)


def test_statistics_over_the_kept_channels_of_each_group():
    """GroupNorm of two groups of four channels, of which two each stay, written out by hand."""
    net = prepared(Net(lambda m, x: m.b(m.n(m.a(x))), a=pointwise(3, 8), n=nn.GroupNorm(2, 8), b=pointwise(8, 2)))
    (x,), kept = drawn(IMAGE), [1, 2, 4, 7]
    y = functional.conv2d(x, net.a.weight[kept])
    y = torch.cat([normalised(part, (1, 2, 3), net.n.eps) for part in (y[:, :2], y[:, 2:])], 1)
    y = y * net.n.weight[kept, None, None] + net.n.bias[kept, None, None]
    by_hand = functional.conv2d(y, net.b.weight[:, kept])
    torch.testing.assert_close(slimmed(net, {"a.weight": kept})(x), by_hand, rtol=1e-12, atol=1e-12)


def shuffled(x, groups=2):
    return x.view(x.shape[0], groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


def halved(m, x):
    left, right = m.a(x).chunk(2, 1)
    return m.h(shuffled(torch.cat([left, m.b(right)], 1)))


def test_shuffle_block():
    """Chunk, transform one half, concatenate, shuffle: halves are cut unevenly, and the shuffle is renumbered."""
    net, (x,) = prepared(Net(halved, a=pointwise(3, 8), b=pointwise(4, 4), h=pointwise(8, 2))), drawn(IMAGE)
    slim = slimmed(net, {"a.weight": (0, 2, 3), "a.weight#2": (1,), "b.weight": (0, 3)})
    left, right, made_by_b = [0, 2, 3], [5], [0, 3]
    y = torch.cat([net.a(x)[:, left], functional.conv2d(net.a(x)[:, right], net.b.weight[made_by_b][:, [1]])], 1)
    # Channel i of the left half goes to 2 i, of the right half to 2 i + 1: in the order of the head's inputs.
    inputs = [0, 4, 6, 1, 7]
    by_hand = functional.conv2d(y, net.h.weight[:, inputs])
    torch.testing.assert_close(slim(x), by_hand, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Forgetful(Slim):
    """Slims and forgets what a test says."""

    name: ClassVar[str] = "forgetful"
    forgets: str = ""

    def _gathered(self, graph, alive):
        found = super()._gathered(graph, alive)
        return {name: tensor for name, tensor in found.items() if name != self.forgets}


@pytest.mark.parametrize(
    ("forgets", "message"),
    [
        ("bn.bias", "after forgetful: node 'batch_norm' .* does not take the shapes that arrive|node 'bn_bias'"),
        ("conv2.bias", "after forgetful: node 'conv2d_2' .* does not take the shapes that arrive|node 'conv2_bias'"),
        ("fc.weight", "after forgetful: node 'linear' .* does not take the shapes that arrive"),
        ("stem.weight", "after forgetful: "),
    ],
)
def test_a_forgotten_tensor_is_found(residual, forgets, message):
    traced, coupling = residual
    with pytest.raises(InvariantError, match=message):
        Forgetful(coupling, KEEP, forgets)(traced)
