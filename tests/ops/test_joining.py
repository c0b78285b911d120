"""Rules of ops that join, extend or make tensors."""

import pytest
import torch
from torch.nn import functional

from curlfx.ops.joining import padding
from tests.networks.net import Net, between, dense, pointwise, tokens, weight
from tests.ops.rules import PASSES, check, frozen, passes

BLOCKS = (2, 2, 4, 4, 4)


def joined(function, second, outputs, **layers):
    """``h(function(a(image), b(image)))`` for channels that are put side by side."""
    return Net(
        lambda m, x: m.h(function(m.a(x), m.b(x))),
        a=pointwise(3, 8),
        b=pointwise(3, second),
        h=pointwise(outputs, 2),
        **layers,
    )


TIED = ["8: a.weight[0] b.weight[0] h.weight[1]"]
SIDE_BY_SIDE = ["8: a.weight[0] h.weight[1]", "5: b.weight[0] h.weight[1]"]

CASES = {
    "cat": (joined(lambda a, b: torch.cat([a, b], 1), 5, 13), SIDE_BY_SIDE),
    "cat_counted_from_the_end": (joined(lambda a, b: torch.cat([a, b], -3), 5, 13), SIDE_BY_SIDE),
    "hstack": (joined(lambda a, b: torch.hstack([a, b]), 5, 13), SIDE_BY_SIDE),
    "vstack": (joined(lambda a, b: torch.vstack([a, b]), 8, 8), TIED),
    "dstack": (joined(lambda a, b: torch.dstack([a, b]), 8, 8), TIED),
    "column_stack": (joined(lambda a, b: torch.column_stack([a, b]), 5, 13), SIDE_BY_SIDE),
    "dstack_of_matrices": (
        tokens(lambda m, y: torch.dstack([y[0], y[1]]).sum(-1)[None]),
        frozen("stacked along an axis that not all tensors have (aten.dstack.default)"),
    ),
    "broadcast": (between(lambda m, y: torch.add(*torch.broadcast_tensors(y, m.q)), q=weight(8, 1, 1)), None),
    "cat_in_space": (joined(lambda a, b: torch.cat([a, b], 2), 8, 8), TIED),
    "cat_in_the_batch": (joined(lambda a, b: torch.cat([a, b]), 8, 8), TIED),
    "cat_twice_the_same": (between(lambda m, y: torch.cat([y, -y], 1), outputs=16), PASSES),
    "cat_with_the_image": (
        Net(lambda m, x: m.h(torch.cat([x, m.a(x)], 1)), a=pointwise(3, 8), h=pointwise(11, 2)),
        PASSES,
    ),
    "cat_with_nothing": (between(lambda m, y: torch.cat([torch.zeros(0), y], 1)), PASSES),
    "cat_with_zeros": (
        between(lambda m, y: torch.cat([y, y.new_zeros(y.shape[0], 2, 4, 4)], 1), outputs=10),
        PASSES,
    ),
    "cat_with_zeros_and_added": (
        joined(lambda a, b: torch.cat([a, a.new_zeros(a.shape[0], 2, 4, 4)], 1) + b, 10, 10),
        ["8: a.weight[0] b.weight[0] h.weight[1]", "2: b.weight[0] h.weight[1]"],
    ),
    "cat_with_a_class_token": (
        tokens(lambda m, y: torch.cat([m.token.expand(y.shape[0], -1, -1), y], 1), token=weight(1, 1, 8)),
        ["8: token[2] a.weight[0] h.weight[1]"],
    ),
    "cat_of_tokens_with_input_tokens": (
        Net(lambda m, x: m.h(torch.cat([x[:, :1], m.a(x)], 1)), a=dense(3, 3), h=dense(3, 2)),
        frozen("meets an axis whose channels have no labels", 3),
    ),
    "cat_within_blocks": (
        between(lambda m, y: torch.cat([y.view(BLOCKS), y.view(BLOCKS).relu()], 2).flatten(1, 2), outputs=16),
        ["8 in 2 blocks: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "cat_of_blocks": (
        between(lambda m, y: torch.cat([y.view(BLOCKS), y.view(BLOCKS).relu()], 1).flatten(1, 2), outputs=16),
        ["2: a.weight[0] h.weight[1]"],
    ),
    "stack_and_sum": (joined(lambda a, b: torch.stack([a, b], 1).sum(1), 8, 8), TIED),
    "stack_and_interleave": (joined(lambda a, b: torch.stack([a, b], 2).flatten(1, 2), 8, 16), TIED),
    "hsplit": (between(lambda m, y: torch.cat(y.hsplit((3,))[::-1], 1)), [*passes(3), *passes(5)]),
    "hsplit_evenly": (between(lambda m, y: torch.cat(y.hsplit(2)[::-1], 1)), [*passes(4), *passes(4)]),
    "vsplit": (between(lambda m, y: torch.cat(y.transpose(0, 1).vsplit(2)[::-1]).transpose(0, 1)), [*passes(4)] * 2),
    "dsplit_of_tokens": (tokens(lambda m, y: torch.cat(y.dsplit(2)[::-1], 2)), [*passes(4), *passes(4)]),
    "dsplit_of_space": (between(lambda m, y: torch.cat(y.dsplit(2)[::-1], 2)), PASSES),
    "rotated_space": (between(lambda m, y: y.rot90(1, (2, 3))), PASSES),
    "rotated_twice": (between(lambda m, y: y.rot90(2, (1, 2))), PASSES),
    "pad_channels": (between(lambda m, y: functional.pad(y, (0, 0, 0, 0, 1, 2)), outputs=11), PASSES),
    "pad_channels_and_add": (
        joined(lambda a, b: functional.pad(a, (0, 0, 0, 0, 1, 2)) + b, 11, 11),
        ["8: a.weight[0] b.weight[0] h.weight[1]", "3: b.weight[0] h.weight[1]"],
    ),
    "pad_with_a_value": (
        joined(lambda a, b: functional.pad(a, (0, 0, 0, 0, 1, 2), value=1.5) + b, 11, 11),
        ["8: a.weight[0] b.weight[0] h.weight[1]", "3: b.weight[0] h.weight[1]"],
    ),
    "pad_space": (between(lambda m, y: functional.pad(y, (1, 1, 0, 2))), PASSES),
    "pad_space_reflected": (between(lambda m, y: functional.pad(y, (1, 1, 0, 2), mode="reflect")), PASSES),
    "pad_space_circular": (between(lambda m, y: functional.pad(y, (1, 1, 0, 2), mode="circular")), PASSES),
    "crop_space": (between(lambda m, y: functional.pad(y, (-1, 0))), PASSES),
    "crop_channels": (
        between(lambda m, y: functional.pad(y, (0, 0, 0, 0, -1, -1)), outputs=6),
        frozen("padded along this axis in a way that is not followed"),
    ),
    "pad_channels_circular": (
        between(lambda m, y: functional.pad(y[:, None], (0, 0, 0, 0, 1, 1), mode="circular")[:, 0], outputs=10),
        frozen("padded along this axis in a way that is not followed"),
    ),
    "pad_within_blocks": (
        between(lambda m, y: functional.pad(y.view(BLOCKS), (0, 0, 0, 0, 0, 2)).flatten(1, 2), outputs=12),
        ["4: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    net, want = CASES[name]
    check(net, ["8: q[0] a.weight[0] h.weight[1]"] if want is None else want)


def test_softmax_over_branches():
    """Two stacked branches weighed against each other: the axis of branches has no channels."""
    net = joined(lambda a, b: (torch.stack([a, b], 1) * torch.stack([a, b], 1).softmax(1)).sum(1), 8, 8)
    check(net, TIED)


@pytest.mark.parametrize(
    ("amounts", "ndim", "want"),
    [([1, 2], 3, [(0, 0), (0, 0), (1, 2)]), ([1, 2, 3, 4], 3, [(0, 0), (3, 4), (1, 2)]), ([], 2, [(0, 0), (0, 0)])],
)
def test_padding_by_axis(amounts, ndim, want):
    assert padding(amounts, ndim) == want
