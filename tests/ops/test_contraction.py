"""Rules of contractions: the summed axis is tied, free axes pass, batch axes are tied."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.net import TOKENS, Net, dense, drawn, prepared, weight
from tests.ops.rules import check
from tests.oracles import Laboratory

attend = functional.scaled_dot_product_attention


def qkv(function, values=5):
    """``o(function(q(x), k(x), v(x)))`` with one head."""
    return Net(
        lambda m, x: m.o(function(m.q(x), m.k(x), m.v(x))),
        q=dense(3, 4),
        k=dense(3, 4),
        v=dense(3, values),
        o=dense(values, 2),
    )


def heads(x, count):
    """``(N, T, count * d)`` as ``(N, count, T, d)``."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)


ONE_HEAD = ["4: q.weight[0] k.weight[0]", "5: v.weight[0] o.weight[1]"]
TWO = {"a": dense(3, 4), "b": dense(4, 2)}

CASES = {
    "linear": (
        Net(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),
        ["4: a.weight[0] a.bias[0] b.weight[1]"],
    ),
    "matmul": (Net(lambda m, x: (x @ m.a).relu() @ m.b, a=weight(3, 4), b=weight(4, 2)), ["4: a[1] b[0]"], TOKENS),
    "mm": (
        Net(lambda m, x: torch.mm(torch.mm(x, m.a).relu(), m.b), a=weight(3, 4), b=weight(4, 2)),
        ["4: a[1] b[0]"],
        (3,),
    ),
    "matrix_times_vector": (Net(lambda m, x: m.a(x) @ m.v, a=dense(3, 4), v=weight(4)), ["4: v[0] a.weight[0]"]),
    "addmm": (
        Net(
            lambda m, x: torch.addmm(m.c, torch.addmm(m.bias, x, m.a).relu(), m.b),
            a=weight(3, 4),
            b=weight(4, 2),
            bias=weight(4),
            c=weight(2),
        ),
        ["4: a[1] b[0] bias[0]"],
        (3,),
    ),
    "gram_of_tokens": (
        Net(lambda m, x: torch.bmm(m.a(x), m.b(x).transpose(1, 2)), a=dense(3, 4), b=dense(3, 4)),
        ["4: a.weight[0] b.weight[0]"],
    ),
    "baddbmm": (
        Net(
            lambda m, x: torch.baddbmm(x.new_zeros(1, 1, 1), m.a(x), m.b(x).mT),
            a=dense(3, 4),
            b=dense(3, 4),
        ),
        ["4: a.weight[0] b.weight[0]"],
    ),
    "gram_of_channels": (
        Net(
            lambda m, x: m.h(((m.a(x).mT @ m.b(x)) @ m.c(x).mT).mT),
            a=dense(3, 4),
            b=dense(3, 6),
            c=dense(3, 6),
            h=dense(4, 2),
        ),
        ["4: a.weight[0] h.weight[1]", "6: b.weight[0] c.weight[0]"],
    ),
    "low_rank_weight": (
        Net(
            lambda m, x: m.b(functional.linear(m.a(x), m.u @ m.v)),
            u=weight(5, 6),
            v=weight(6, 4),
            a=dense(3, 4),
            b=dense(5, 2),
        ),
        ["5: weight[0] b.weight[1]", "4: weight[1] a.weight[0]"],
    ),
    "einsum": (
        Net(lambda m, x: m.b(torch.einsum("btc,kc->btk", x, m.a)), a=weight(4, 3), b=dense(4, 2)),
        ["4: a[0] b.weight[1]"],
        TOKENS,
    ),
    "einsum_of_three": (
        Net(
            lambda m, x: m.h(torch.einsum("bti,btj,kij->btk", m.a(x), m.b(x), m.w)),
            a=dense(3, 4),
            b=dense(3, 5),
            w=weight(6, 4, 5),
            h=dense(6, 2),
        ),
        ["6: w[0] h.weight[1]", "4: w[1] a.weight[0]", "5: w[2] b.weight[0]"],
    ),
    "einsum_with_ellipsis": (
        Net(lambda m, x: torch.einsum("b...,b...->b", m.a(x), m.b(x)), a=dense(3, 4), b=dense(3, 4)),
        [f"{x}.weight[0] stays, 4: einsum b...,b...->b is not followed" for x in "ab"],
    ),
    "attention": (qkv(attend), ONE_HEAD),
    "attention_by_hand": (qkv(lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v), ONE_HEAD),
    "attention_with_mask": (qkv(lambda q, k, v: attend(q, k, v, attn_mask=torch.ones(5, 5).tril().bool())), ONE_HEAD),
    "attention_causal": (qkv(lambda q, k, v: attend(q, k, v, is_causal=True)), ONE_HEAD),
    "attention_scaled": (qkv(lambda q, k, v: attend(q, k, v, scale=0.3)), ONE_HEAD),
    "attention_of_heads": (
        qkv(lambda q, k, v: attend(heads(q, 2), heads(k, 2), heads(v, 2)).transpose(1, 2).flatten(2), values=6),
        [
            "4 in 2 blocks: q.weight[0] k.weight[0]",
            "6 in 2 blocks: v.weight[0] o.weight[1]",
            "2: q.weight[0] k.weight[0] v.weight[0] o.weight[1]",
        ],
    ),
    "attention_over_channels": (
        Net(lambda m, x: m.h(((m.a(x).mT @ m.a(x)).softmax(-1) @ m.a(x).mT).mT), a=dense(3, 4), h=dense(4, 2)),
        ["a.weight[0] stays, 4: aten.softmax.int runs over these channels"],
    ),
    # Sums over weights alone would change for what stays.
    "dot_of_vectors": (
        Net(lambda m, x: m.b(m.a(x) * m.u) * (m.u @ m.v), u=weight(4), v=weight(4), **TWO),
        ["a.weight[0] stays, 4: a sum over weights alone, which would change what stays"],
    ),
    "dot_of_vectors_elsewhere": (
        Net(lambda m, x: m.b(m.a(x).relu()) * (m.u @ m.v), u=weight(4), v=weight(4), **TWO),
        ["4: a.weight[0] b.weight[1]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    net, want, *shapes = CASES[name]
    check(net, want, *(shapes or [TOKENS]))


def test_grouped_queries_share_the_heads_of_keys_and_values():
    net = Net(
        lambda m, x: m.o(attend(heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2), enable_gqa=True).flatten(1)),
        q=dense(3, 8),
        k=dense(3, 4),
        v=dense(3, 4),
        o=dense(40, 2),
    )
    want = [
        "4 in 2 blocks: q.weight[0] k.weight[0]",
        "4 in 2 blocks: v.weight[0] o.weight[1]",
        "2: q.weight[0] k.weight[0] v.weight[0] o.weight[1]",
    ]
    check(net, want, TOKENS)


def test_embedding_rows_are_looked_up_and_columns_are_channels():
    net = prepared(Net(lambda m, x: m.h(m.e(x)), e=nn.Embedding(7, 4), h=dense(4, 2)))
    inputs = (torch.randint(0, 7, (2, 5)),)
    laboratory = Laboratory.of(net, inputs)
    group = laboratory.coupling.group("e.weight")
    assert [str(site) for site in group.sites] == ["e.weight[1]", "h.weight[1]"]
    slim = laboratory.slim({"e.weight": (0, 2)}).module
    assert slim.get_parameter("e.weight").shape == (7, 2)
    by_hand = net.e.weight[:, [0, 2]][inputs[0]] @ net.h.weight[:, [0, 2]].T
    torch.testing.assert_close(slim(*inputs), by_hand, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_keeps_the_scale_of_the_intact_head(scale):
    """Queries lose half of their channels; products are still divided by the root of four, not of two."""
    net = prepared(qkv(lambda q, k, v: attend(q, k, v, scale=scale)))
    inputs = drawn(TOKENS)
    slim = Laboratory.of(net, inputs).slim({"q.weight": (1, 3)}).module
    (x,) = inputs
    query, key, value = x @ net.q.weight[[1, 3]].T, x @ net.k.weight[[1, 3]].T, net.v(x)
    by_hand = net.o((query @ key.mT * (scale or 4**-0.5)).softmax(-1) @ value)
    torch.testing.assert_close(slim(x), by_hand, rtol=1e-12, atol=1e-12)
