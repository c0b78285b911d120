"""Rules of reductions: sums over channels are contractions, statistics say that they change, the rest freezes."""

import math

import pytest
import torch

from tests.networks.net import Net, between, drawn, pointwise, prepared, weight
from tests.ops.rules import PASSES, check, frozen
from tests.oracles import Laboratory

ALONE = ["8: a.weight[0]"]
CHANGES = ["8, statistics: a.weight[0] h.weight[1]"]
CHANGES_ALONE = ["8, statistics: a.weight[0]"]


def head(function):
    """``function(a(image))``: the network ends there."""
    return Net(lambda m, x: function(m.a(x)), a=pointwise(3, 8))


def over(op):
    return frozen(f"aten.{op} runs over these channels")


CASES = {
    "sum": (head(lambda y: y.sum(1)), ALONE),
    "sum_from_the_end": (between(lambda m, y: y * y.sum(-3, keepdim=True)), PASSES),
    "sum_of_everything": (head(lambda y: y.sum()), ALONE),
    "sum_over_blocks": (
        between(lambda m, y: y.unflatten(1, (2, 4)).sum(1), outputs=4),
        ["4: a.weight[0] h.weight[1]", "2: a.weight[0]"],
    ),
    "sum_of_space": (between(lambda m, y: y * y.sum((2, 3), keepdim=True)), PASSES),
    "sum_of_the_batch": (between(lambda m, y: y * y.sum(0, keepdim=True)), PASSES),
    "norm": (between(lambda m, y: y * y.norm(dim=1, keepdim=True)), PASSES),
    "norm_by_its_other_name": (between(lambda m, y: y * torch.linalg.norm(y, dim=1, keepdim=True)), PASSES),
    "largest_norm": (between(lambda m, y: y * torch.linalg.vector_norm(y, math.inf, 1, True)), PASSES),
    "count_norm": (
        between(lambda m, y: y * torch.linalg.vector_norm(y, 0, 1, True)),
        over("linalg_vector_norm.default"),
    ),
    "smallest_norm": (
        between(lambda m, y: y * torch.linalg.vector_norm(y, -math.inf, 1, True)),
        over("linalg_vector_norm.default"),
    ),
    "matrix_norm": (
        between(lambda m, y: y * torch.linalg.norm(y, "nuc", (1, 2), keepdim=True)),
        over("linalg_norm.ord_str"),
    ),
    "mean": (between(lambda m, y: y * y.mean(1, keepdim=True)), CHANGES),
    "mean_of_everything": (head(lambda y: y.mean()), CHANGES_ALONE),
    "mean_of_space": (between(lambda m, y: y * y.mean((-1, -2), keepdim=True)), PASSES),
    "variance": (between(lambda m, y: y * y.var(1, keepdim=True)), CHANGES),
    "deviation_of_space": (between(lambda m, y: y * y.std((2, 3), keepdim=True)), PASSES),
    "two_moments": (between(lambda m, y: y * torch.var_mean(y, (2, 3), keepdim=True)[0]), PASSES),
    "largest": (between(lambda m, y: y * y.amax(1, keepdim=True)), CHANGES),
    "largest_and_where": (between(lambda m, y: y * y.max(1, keepdim=True)[0]), CHANGES),
    "largest_with_its_place": (
        Net(lambda m, x: y.max(1) if (y := m.a(x)) is not None else None, a=pointwise(3, 8)),
        over("max.dim"),
    ),
    "smallest_is_where": (head(lambda y: y.min(1)[1]), over("min.dim")),
    "mean_of_a_block": (
        between(lambda m, y: (z := y.unflatten(1, (2, 4))).sub(z.mean(2, True)).flatten(1, 2)),
        ["8 in 2 blocks, statistics: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "mean_over_blocks": (
        between(lambda m, y: y.unflatten(1, (2, 4)).mean(1), outputs=4),
        ["4: a.weight[0] h.weight[1]", "2, statistics: a.weight[0]"],
    ),
    "mean_of_blocks_and_in_them": (
        between(lambda m, y: y * y.unflatten(1, (2, 4)).mean((1, 2), True).flatten(1, 2)),
        ["8 in 2 blocks, statistics: a.weight[0] h.weight[1]", "2, statistics: a.weight[0] h.weight[1]"],
    ),
    "mean_of_weights": (
        between(lambda m, y: y * m.w * m.w.mean(), w=weight(8, 1, 1)),
        frozen("a statistic of weights alone, which would change what stays"),
    ),
    "largest_of_space": (between(lambda m, y: y * y.max(2, keepdim=True)[0]), PASSES),
    "largest_of_all": (between(lambda m, y: y * y.max()), CHANGES),
    "where_is_the_largest": (head(lambda y: y.argmax(1)), over("argmax.default")),
    "product": (between(lambda m, y: y * y.prod(1, keepdim=True)), over("prod.dim_int")),
    "any_in_space": (between(lambda m, y: y * (y > 0).any(2, keepdim=True)), PASSES),
    "log_of_sum": (between(lambda m, y: y * y.logsumexp(1, keepdim=True)), over("logsumexp.default")),
    "softmax": (between(lambda m, y: y.softmax(1)), over("softmax.int")),
    "softmax_of_space": (between(lambda m, y: y.flatten(2).softmax(-1).unflatten(2, (4, 4))), PASSES),
    "softmax_within_blocks": (
        between(lambda m, y: y.unflatten(1, (2, 4)).softmax(1).flatten(1, 2)),
        ["4: a.weight[0] h.weight[1]"],
    ),
    "log_softmax": (between(lambda m, y: y.log_softmax(1)), over("log_softmax.int")),
    "running_sum": (between(lambda m, y: y.cumsum(1)), over("cumsum.default")),
    "running_sum_of_space": (between(lambda m, y: y.cumsum(2)), PASSES),
    "sum_of_weights": (
        between(lambda m, y: y * m.w * m.w.sum(), w=weight(8, 1, 1)),
        frozen("a sum over weights alone, which would change what stays"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])


def test_a_sum_misses_what_went():
    net = prepared(head(lambda y: y.sum(1)))
    inputs = drawn((3, 4, 4))
    slim = Laboratory.of(net, inputs).slim({"a.weight": (2, 5)}).module
    torch.testing.assert_close(slim(*inputs), net.a(*inputs)[:, [2, 5]].sum(1), rtol=1e-12, atol=1e-12)
