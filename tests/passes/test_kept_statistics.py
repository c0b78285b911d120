"""Statistics over the kept channels: gated, slim, and a network built narrow by hand all compute the same.

The narrow network is the oracle: the same expression over layers whose rows and columns were picked by hand.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.trial import relative_error
from curlfx.passes.gate import Gate, set_gates
from curlfx.passes.pipeline import run
from tests.networks.net import IMAGE, Net, between, drawn, pointwise, prepared
from tests.oracles import Laboratory
from tests.properties.invariants import TOLERANCE, evaluate, open_gates_change_nothing

WIDTH = 8
NORMS = {
    "layer_norm": lambda m, y: nn.functional.layer_norm(y.mT, (y.shape[1],), eps=1e-3).mT,
    "rms_norm": lambda m, y: nn.functional.rms_norm(y.mT, (y.shape[1],), eps=1e-3).mT,
}
STATISTICS = {
    "mean": lambda y, dim, keep: y.mean(dim, keep),
    "mean_of_another_type": lambda y, dim, keep: y.float().mean(dim, keep, dtype=torch.float64),
    "var": lambda y, dim, keep: y.var(dim, correction=0, keepdim=keep),
    "var_unbiased": lambda y, dim, keep: y.var(dim, unbiased=True, keepdim=keep),
    "var_of_another_correction": lambda y, dim, keep: y.var(dim, correction=0.5, keepdim=keep),
    "std": lambda y, dim, keep: y.std(dim, keepdim=keep),
    "std_biased": lambda y, dim, keep: y.std(dim, unbiased=False, keepdim=keep),
    "var_mean": lambda y, dim, keep: sum(torch.var_mean(y, dim, keepdim=keep)),
    "std_mean": lambda y, dim, keep: torch.std_mean(y, dim, correction=1, keepdim=keep)[0],
    "mean_of_var_mean": lambda y, dim, keep: torch.var_mean(y, dim, keepdim=keep)[1],
    "amax": lambda y, dim, keep: y.amax(dim, keep),
    "amin": lambda y, dim, keep: y.amin(dim, keep),
    "amax_of_integers": lambda y, dim, keep: (y * 1000).long().amax(dim, keep).double(),
    "amin_of_integers": lambda y, dim, keep: (y * 1000).long().amin(dim, keep).double(),
    "amax_of_bools": lambda y, dim, keep: (y > 0.7).amax(dim, keep).double(),
    "max": lambda y, dim, keep: in_turn(y, dim, keep, lambda z, axis: z.max(axis, keepdim=True)[0]),
    "min": lambda y, dim, keep: in_turn(y, dim, keep, lambda z, axis: torch.min(z, axis, True).values),
}
OF_ALL = {
    "mean": lambda y: y.mean(),
    "var": lambda y: y.var(),
    "std": lambda y: y.std(),
    "max": lambda y: y.max(),
    "min": lambda y: y.min(),
    "amax": lambda y: y.amax(),
    "var_mean": lambda y: torch.var_mean(y)[0],
}


def in_turn(y, dim, keep, take):
    """A statistic that knows one axis at a time, over several."""
    for axis in dim:
        y = take(y, axis)
    return y if keep else y.squeeze(dim)


def narrow(net, kept):
    """The same expression over the kept rows of ``a`` and columns of ``h``."""
    result = Net(net.function, a=pointwise(3, len(kept)), h=pointwise(len(kept), 2)).double()
    with torch.no_grad():
        result.a.weight.copy_(net.a.weight[list(kept)])
        result.h.weight.copy_(net.h.weight[:, list(kept)])
    return result


def agree(net, kept, batch=2):
    """Gated, slim and narrow compute the same, for another batch than the traced one too."""
    net = prepared(net)
    laboratory = Laboratory.of(net, drawn(IMAGE))
    (group,) = laboratory.coupling.groups
    assert group.statistics_change
    inputs = drawn(IMAGE, batch=batch)
    want = evaluate(narrow(net, kept), inputs)
    for found in (laboratory.slim({group.id: kept}), laboratory.gated({group.id: kept}, statistics="kept")):
        error = relative_error(evaluate(found.module, inputs), want)
        assert error <= TOLERANCE, f"{error:.1e}"
    open_gates_change_nothing(laboratory, inputs)


AXES = [(1, *others) for count in range(4) for others in itertools.combinations((0, 2, 3), count)]


@pytest.mark.slow
@given(
    statistic=st.sampled_from(list(STATISTICS)),
    axes=st.sampled_from(AXES),
    negative=st.booleans(),
    keepdim=st.booleans(),
    kept=st.sets(st.integers(0, WIDTH - 1), min_size=2).map(sorted),
    batch=st.integers(1, 3),
)
def test_statistics_over_channels(statistic, axes, negative, keepdim, kept, batch):
    take = STATISTICS[statistic]
    dim = [axis - 4 if negative else axis for axis in axes]

    def function(m, y):
        found = take(y, dim, keepdim)
        return y * (found if keepdim else 1 + found.square().mean())

    agree(between(function), tuple(kept), batch)


@pytest.mark.parametrize("name", STATISTICS)
def test_over_channels_alone(name):
    agree(between(lambda m, y: y * STATISTICS[name](y, [1], True)), (1, 2, 6))


@pytest.mark.parametrize("name", OF_ALL)
def test_over_everything(name):
    agree(between(lambda m, y: y * OF_ALL[name](y)), (0, 3, 4), batch=3)


@pytest.mark.parametrize("name", NORMS)
def test_normalisations(name):
    agree(between(lambda m, y: NORMS[name](m, y.flatten(2)).unflatten(2, (4, 4))), (1, 2, 6))


@pytest.mark.parametrize("name", ["mean", "var", "std", "amax", "max"])
@pytest.mark.parametrize("dim", [(1,), (2,), (1, 2)])
def test_two_label_arrays(name, dim):
    """The Gram matrix of the channels: rows and columns are the same channels; what goes of one axis stays finite."""

    def function(m, y):
        gram = y.flatten(2) @ y.flatten(2).mT
        return y / (1 + STATISTICS[name](gram, dim, True).flatten(1).abs().mean(1)[:, None, None, None])

    agree(between(function), (0, 3, 4, 5))


@pytest.mark.parametrize("name", ["mean", "var", "std", "amin", "max"])
def test_channels_that_went_are_finite(name):
    """A channel divided by a statistic of its row of a table of pairs: the row of a channel that went is not 0."""

    def function(m, y):
        spots = y.square().mean((2, 3))
        return y / STATISTICS[name](spots[:, :, None] * spots[:, None, :], [2], True)[..., None]

    agree(between(function), (0, 3, 4, 5))


def test_blocks_of_channels():
    """Means within blocks whose kept positions differ."""
    net = prepared(
        between(lambda m, y: (z := y.unflatten(1, (2, y.shape[1] // 2))).sub(z.mean((2, 3), True)).flatten(1, 2))
    )
    laboratory = Laboratory.of(net, drawn(IMAGE))
    keep = {"a.weight": (0, 3, 5, 6)}
    want = evaluate(narrow(net, keep["a.weight"]), drawn(IMAGE))
    for found in (laboratory.slim(keep), laboratory.gated(keep, statistics="kept")):
        assert relative_error(evaluate(found.module, drawn(IMAGE)), want) <= TOLERANCE


@pytest.mark.parametrize("name", ["mean", "var", "std", "amax", "max"])
@pytest.mark.parametrize("dim", [(1,), (2,), (1, 2), (2, 3)])
def test_whole_blocks_go(name, dim):
    """Statistics over blocks, and within blocks that may be gone."""

    def function(m, y):
        z = y.unflatten(1, (-1, 2))
        return (z * STATISTICS[name](z, dim, True)).flatten(1, 2)

    net = prepared(between(function))
    laboratory = Laboratory.of(net, drawn(IMAGE))
    (blocks,) = (group for group in laboratory.coupling.groups if group.width == 4)
    assert blocks.statistics_change == (1 in dim)
    want = evaluate(narrow(net, (2, 3, 4, 5)), drawn(IMAGE))
    for found in (laboratory.slim({blocks.id: (1, 2)}), laboratory.gated({blocks.id: (1, 2)}, statistics="kept")):
        assert relative_error(evaluate(found.module, drawn(IMAGE)), want) <= TOLERANCE


def test_one_statistic_of_another():
    """The source of the second statistic is itself one that was replaced."""
    agree(between(lambda m, y: (y - y.mean((2, 3), True)) * y.amax((2, 3), True).mean(1, True).sigmoid()), (2, 7))
    agree(between(lambda m, y: y * y.mean(1, True).amax((1, 2), True)), (2, 7))


def test_all_channels_on_request():
    """``statistics="all"`` averages as the intact network does, whatever the gates."""
    net = prepared(between(lambda m, y: y * y.mean(1, keepdim=True)))
    laboratory = Laboratory.of(net, drawn(IMAGE))
    y = net.a(*drawn(IMAGE))
    want = net.h(y * y.mean(1, keepdim=True) * torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0])[:, None, None])
    gated = laboratory.gated({"a.weight": (0, 3, 4)}, statistics="all")
    assert relative_error(evaluate(gated.module, drawn(IMAGE)), want) <= TOLERANCE


def test_a_frozen_statistic_is_left_as_it_is():
    """No label runs along the axis: the call stays."""
    laboratory = Laboratory.of(prepared(between(lambda m, y: y * y.mean((2, 3), True).sigmoid())), drawn(IMAGE))
    gated = run(laboratory.traced, [Gate(laboratory.coupling, statistics="kept")])[0]
    assert sum(node.target is torch.ops.aten.mean.dim for node in gated.graph.nodes) == 1


def test_gradients_reach_the_gates():
    """Importance by gradients looks through the masked statistics; no channel's is NaN."""
    net = prepared(between(lambda m, y: y / (y.std(1, keepdim=True) + y.amax((1, 2, 3), keepdim=True).abs() + 1)))
    laboratory = Laboratory.of(net, drawn(IMAGE))
    gated = laboratory.gated({"a.weight": (0, 3, 4)}, statistics="kept").module
    set_gates(gated, torch.from_numpy(laboratory.coupling.alive({"a.weight": (0, 3, 4)})))
    gates = gated.get_buffer("curlfx_gates").requires_grad_()
    (gradient,) = torch.autograd.grad(gated(*drawn(IMAGE)).square().sum(), gates)
    assert torch.isfinite(gradient).all()
    assert (gradient[1:] != 0).sum() == 8
