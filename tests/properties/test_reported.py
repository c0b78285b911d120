"""Networks that once crashed or gave too little; each slimmed, gated and priced at random keep sets."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.trial import random_keep
from tests.networks.net import Net, dense, drawn, pointwise, prepared
from tests.oracles import Laboratory
from tests.properties import invariants

TOKENS, IMAGE = (6, 10), (3, 8, 8)


def projections(**more):
    return {"a": dense(10, 16), **{name: dense(16, 16) for name in "qkvo"}, "h": dense(16, 5), **more}


def heads(m, x):
    return [layer(x).view(*x.shape[:2], 2, 8).transpose(1, 2) for layer in (m.q, m.k, m.v)]


def finish(m, x, mixed):
    return m.h((x + m.o(mixed)).mean(1))


def viewed_as_it_lies(m, x):
    """The export drops the call to contiguous."""
    x = m.a(x)
    mixed = functional.scaled_dot_product_attention(*heads(m, x)).transpose(1, 2).contiguous()
    return finish(m, x, mixed.view(x.shape[0], -1, 16))


def heads_before_batch(m, x):
    x = m.a(x)
    batch = x.shape[0]
    q, k, v = (t.transpose(0, 1).reshape(2 * batch, -1, 8) for t in heads(m, x))
    mixed = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).reshape(2, batch, -1, 8)
    return finish(m, x, mixed.permute(1, 2, 0, 3).reshape(x.shape))


def rotary(m, x):
    """Positions from arange, pairs of neighbouring channels."""
    x = m.a(x)
    angles = torch.outer(torch.arange(6, dtype=x.dtype), 1 / 10 ** (torch.arange(4, dtype=x.dtype) / 4))
    cos, sin = (f(angles).repeat_interleave(2, -1) for f in (torch.cos, torch.sin))
    q, k, v = heads(m, x)
    q, k = (t * cos + torch.stack([-t[..., 1::2], t[..., ::2]], -1).reshape(t.shape) * sin for t in (q, k))
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return finish(m, x, mixed.transpose(1, 2).reshape(x.shape))


def keys_expanded_to_queries(m, x):
    x = m.a(x)
    batch, count = x.shape[:2]
    q = m.q(x).view(batch, count, 4, 4).transpose(1, 2)
    k, v = (layer(x).view(batch, count, 2, 4).transpose(1, 2) for layer in (m.small, m.other))
    k, v = (t[:, :, None].expand(batch, 2, 2, count, 4).reshape(batch, 4, count, 4) for t in (k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return finish(m, x, mixed.transpose(1, 2).reshape(x.shape))


def correlation(m, x):
    """One kernel for every channel of every image."""
    y, kernel = m.a(x), m.k(x[:, :, 2:5, 2:5])
    batch, width = y.shape[:2]
    found = functional.conv2d(y.reshape(1, -1, 8, 8), kernel.reshape(-1, 1, 3, 3), groups=batch * width)
    return m.h(found.reshape(batch, width, 6, 6).mean((2, 3)))


CASES = {
    "viewed_as_it_lies": (Net(viewed_as_it_lies, **projections()), TOKENS, 4),
    "heads_before_batch": (Net(heads_before_batch, **projections()), TOKENS, 4),
    "rotary": (Net(rotary, **projections()), TOKENS, 4),
    "keys_expanded_to_queries": (
        Net(keys_expanded_to_queries, **projections(small=dense(16, 8), other=dense(16, 8))),
        TOKENS,
        5,
    ),
    "correlation": (Net(correlation, a=pointwise(3, 12), k=pointwise(3, 12), h=dense(12, 5)), IMAGE, 1),
    "a_group_with_a_channel_of_the_image": (
        Net(
            lambda m, x: m.h(m.c(torch.cat([m.a(x), x[:, :1]], 1)).mean((2, 3))),
            a=pointwise(3, 5),
            c=nn.Conv2d(6, 4, 1, groups=2),
            h=dense(4, 5),
        ),
        IMAGE,
        2,
    ),
    "a_slice_that_cuts_a_group_norm": (
        Net(lambda m, x: m.h(m.n(m.a(x))[:, :3].mean((2, 3))), a=pointwise(3, 8), n=nn.GroupNorm(2, 8), h=dense(3, 5)),
        IMAGE,
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reported(name):
    net, shape, groups = CASES[name]
    laboratory = Laboratory.of(prepared(net), drawn(shape))
    assert len(laboratory.coupling.groups) >= groups
    for seed, ratio in enumerate((0.5, 0.3, 0.8, 0.01)):
        keep = random_keep(laboratory.coupling.groups, ratio, seed)
        invariants.slim_equals_gated(laboratory, keep, drawn(shape, batch=3))
        invariants.cost_is_predicted(laboratory, keep)
