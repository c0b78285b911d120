"""Rules of products that are no plain matrix product."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.net import Net, between, dense, tokens, weight
from tests.ops.rules import check

EPS = "a distance adds eps for each of these channels"


def joined(function, outputs=5, **layers):
    """``h(function(a(tokens), b(tokens)))``."""
    return Net(
        lambda m, x: m.h(function(m, m.a(x), m.b(x))), a=dense(3, 8), b=dense(3, 8), h=dense(outputs, 2), **layers
    )


TIED = ["8: a.weight[0] b.weight[0]"]

CASES = {
    "inner": (tokens(lambda m, y: torch.inner(y, m.q), outputs=6, q=weight(6, 8)), ["8: q[1] a.weight[0]"]),
    "tensordot": (tokens(lambda m, y: torch.tensordot(y, m.q, ([2], [0])), outputs=6, q=weight(8, 6)), None),
    "tensordot_of_two": (joined(lambda m, a, b: torch.tensordot(a, b, ([2], [2])).flatten(2)[:, :, :5]), TIED),
    "dot": (
        tokens(lambda m, y: y * torch.dot(y[0, 0], m.q), q=weight(8)),
        ["8: q[0] a.weight[0] h.weight[1]"],
    ),
    "matrix_times_vector": (
        tokens(lambda m, y: y + torch.mv(m.q, y[0, 0]), q=weight(8, 8)),
        ["8: q[0] q[1] a.weight[0] h.weight[1]"],
    ),
    "addmv": (
        tokens(lambda m, y: y + torch.addmv(m.v, m.q, y[0, 0]), q=weight(8, 8), v=weight(8)),
        ["8: q[0] q[1] v[0] a.weight[0] h.weight[1]"],
    ),
    "addbmm": (
        tokens(lambda m, y: torch.addbmm(m.q, y, y.transpose(1, 2) @ y)[None], q=weight(5, 8)),
        ["8: q[1] a.weight[0] h.weight[1]"],
    ),
    "bilinear": (
        joined(lambda m, a, b: m.f(a, b), outputs=6, f=nn.Bilinear(8, 8, 6)),
        ["8: a.weight[0] f.weight[1]", "8: b.weight[0] f.weight[2]", "6: h.weight[1] f.weight[0] f.bias[0]"],
    ),
    "distances": (joined(lambda m, a, b: torch.cdist(a, b)), TIED),
    "distances_by_absolute_values": (joined(lambda m, a, b: torch.cdist(a, b, p=1.0)), TIED),
    "distances_to_a_table": (
        tokens(lambda m, y: torch.cdist(y, m.q), outputs=6, q=weight(6, 8)),
        ["8: q[1] a.weight[0]"],
    ),
    "cosine_to_a_table": (
        tokens(lambda m, y: functional.cosine_similarity(y, m.q, dim=-1), outputs=5, q=weight(1, 1, 8)),
        ["8: q[2] a.weight[0]"],
    ),
    "cosine": (joined(lambda m, a, b: functional.cosine_similarity(a, b, dim=-1)), TIED),
    "cosine_over_tokens": (
        joined(lambda m, a, b: functional.cosine_similarity(a, b, dim=1), outputs=8),
        ["8: a.weight[0] b.weight[0] h.weight[1]"],
    ),
    "pairwise_distance": (
        joined(lambda m, a, b: functional.pairwise_distance(a, b)),
        [f"a.weight[0] stays, 8: {EPS}", f"b.weight[0] stays, 8: {EPS}"],
    ),
    "outer": (
        between(lambda m, y: y * torch.outer(m.p, m.q)[:, None, :, None], p=weight(2), q=weight(1)),
        ["8: a.weight[0] h.weight[1]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    net, want = CASES[name]
    check(net, ["8: q[0] a.weight[0]"] if want is None else want)
