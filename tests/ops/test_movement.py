"""Rules of data movement: what passes, what is balanced or tied, what stays."""

import pytest
import torch

from tests.networks.net import Net, between, pointwise, tokens
from tests.ops.rules import PASSES, check, frozen, passes

BLOCKS = (2, 2, 4, 4, 4)  # eight channels as two blocks of four

CASES = {
    # Row-major order stays.
    "view": (between(lambda m, y: y.view(2, 8, 16).view(2, 8, 4, 4)), PASSES),
    "view_minus_one": (between(lambda m, y: y.view(2, -1, 16).view(2, 8, 4, 4)), PASSES),
    "reshape_to_blocks": (
        between(lambda m, y: y.reshape(BLOCKS).relu().reshape(2, 8, 4, 4)),
        ["8 in 2 blocks: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "unflatten": (
        between(lambda m, y: y.unflatten(1, (4, 2)).flatten(1, 2)),
        ["8 in 4 blocks: a.weight[0] h.weight[1]", "4: a.weight[0] h.weight[1]"],
    ),
    "blocks_into_the_batch": (
        between(lambda m, y: y.view(y.shape[0] * 2, 4, 4, 4).relu().view(y.shape[0], 8, 4, 4)),
        ["8 in 2 blocks: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "view_as": (between(lambda m, y: y.flatten(1).view_as(y)), PASSES),
    "reshape_as_another": (
        Net(
            lambda m, x: m.h(m.a(x).flatten(2).reshape_as(m.b(x))),
            a=pointwise(3, 8),
            b=pointwise(3, 8),
            h=pointwise(8, 2),
        ),
        ["8: a.weight[0] b.weight[0] h.weight[1]"],
    ),
    "unsqueeze_squeeze": (between(lambda m, y: y.unsqueeze(1).squeeze(1)), PASSES),
    # It changes.
    "permute": (tokens(lambda m, y: y.permute(2, 0, 1).permute(1, 2, 0)), PASSES),
    "transpose": (tokens(lambda m, y: y.transpose(1, 2).relu().transpose(-1, -2)), PASSES),
    "swapaxes": (tokens(lambda m, y: y.swapaxes(1, 2).swapaxes(1, 2)), PASSES),
    "movedim": (tokens(lambda m, y: y.movedim(2, 0).movedim(0, -1)), PASSES),
    "blocks_trade_places": (
        between(lambda m, y: y.view(BLOCKS).transpose(1, 2).relu().transpose(1, 2).reshape(2, 8, 4, 4)),
        ["4: a.weight[0] h.weight[1]", "2: a.weight[0] h.weight[1]"],
    ),
    "blocks_become_rows": (between(lambda m, y: y.view(BLOCKS).transpose(1, 2).flatten(2, 3), outputs=4), passes(4)),
    # A part of an axis; what no one reads may go down to one channel.
    "slice": (between(lambda m, y: y[:, 2:7], outputs=5), ["3: a.weight[0]", "5: a.weight[0] h.weight[1]"]),
    "slice_from_the_end": (between(lambda m, y: y[:, -3:], outputs=3), ["5: a.weight[0]", *passes(3)]),
    "slice_to_the_end": (between(lambda m, y: y[:, 1:-3], outputs=4), ["4: a.weight[0]", *passes(4)]),
    "slices_overlap": (
        between(lambda m, y: torch.cat([y[:, :5], y[:, 3:]], 1), outputs=10),
        [*passes(3), *passes(2), *passes(3)],
    ),
    "slices_meet": (between(lambda m, y: y[:, :4] + y[:, 4:], outputs=4), passes(4)),
    "slice_with_stride": (between(lambda m, y: y[:, ::2], outputs=4), ["4: a.weight[0] h.weight[1]", "4: a.weight[0]"]),
    "slice_of_space": (between(lambda m, y: y[:, :, ::2, 1:]), PASSES),
    "narrow": (between(lambda m, y: y.narrow(1, 2, 5), outputs=5), ["3: a.weight[0]", *passes(5)]),
    "narrow_from_the_end": (between(lambda m, y: y.narrow(1, -5, 5), outputs=5), ["3: a.weight[0]", *passes(5)]),
    "select_channel": (
        between(lambda m, y: y.select(1, 3).unsqueeze(1) * y),
        [*passes(7), *frozen("a whole tensor hangs on this one channel", 1)],
    ),
    "select_channel_from_the_end": (
        between(lambda m, y: y.select(1, -2).unsqueeze(1) * y),
        [*passes(7), *frozen("a whole tensor hangs on this one channel", 1)],
    ),
    "select_block": (
        between(lambda m, y: y.view(BLOCKS).select(1, 1), outputs=4),
        ["8 in 2 blocks: a.weight[0] h.weight[1]", "1: a.weight[0]"],
    ),
    # Parts get sizes of their own.
    "split": (between(lambda m, y: torch.cat(y.split([3, 5], 1)[::-1], 1)), [*passes(3), *passes(5)]),
    "split_leaves_a_rest": (
        between(lambda m, y: y.split(3, 1)[0] * y.split(3, 1)[1], outputs=3),
        [*passes(3), "2: a.weight[0]"],
    ),
    "chunks_meet": (between(lambda m, y: y.chunk(2, 1)[0] * y.chunk(2, 1)[1].sigmoid(), outputs=4), passes(4)),
    "chunks_are_uneven": (between(lambda m, y: torch.cat(y.chunk(3, 1), 1)), [*passes(3), *passes(3), *passes(2)]),
    "tensor_split": (
        between(lambda m, y: torch.cat(y.tensor_split((2, 5), 1)[::-1], 1)),
        [*passes(2), *passes(3), *passes(3)],
    ),
    "unbind_blocks": (
        between(lambda m, y: y.view(BLOCKS).unbind(1)[0] * y.view(BLOCKS).unbind(1)[1], outputs=4),
        passes(4),
    ),
    "unbind_channels": (
        between(lambda m, y: torch.stack(y.unbind(1), 1)),
        frozen("a whole tensor hangs on this one channel"),
    ),
    # Positions are renumbered where they are a constant list along one axis.
    "index": (between(lambda m, y: y[:, [3, 1, 0, 7]], outputs=4), [*passes(4), "4: a.weight[0]"]),
    "index_repeats": (between(lambda m, y: y[:, [3, 3, 0, -1]], outputs=4), [*passes(3), "5: a.weight[0]"]),
    "index_select": (
        between(lambda m, y: y.index_select(1, torch.tensor([5, 2, 1])), outputs=3),
        ["5: a.weight[0]", *passes(3)],
    ),
    "index_of_a_buffer": (between(lambda m, y: y[:, m.order], order=torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])), PASSES),
    "index_of_space": (between(lambda m, y: y[:, :, [3, 2, 1, 0]]), PASSES),
    "index_matrix": (
        between(lambda m, y: y[:, torch.tensor([[0, 1], [2, 3]])].flatten(1, 2), outputs=4),
        frozen("picked by index along this axis"),
    ),
    "index_computed": (
        between(lambda m, y: y[:, :, y.sum((0, 1, 3)).argsort()]),
        frozen("picked by a computed index"),
    ),
    "roll_of_space": (between(lambda m, y: y.roll((1, 2), (2, 3))), PASSES),
    "roll_of_channels": (between(lambda m, y: y.roll(1, 1)), frozen("rolled along this axis")),
    "roll_of_everything": (between(lambda m, y: y.roll(1)), frozen("rolled along this axis")),
    "windows_of_space": (between(lambda m, y: y.unfold(2, 2, 2).sum(-1)), PASSES),
    "windows_of_channels": (
        between(lambda m, y: y.unfold(1, 2, 2).sum(-1), outputs=4),
        frozen("cut into windows along this axis"),
    ),
    # The op keeps the order of what is kept.
    "flip": (between(lambda m, y: y.flip(1)), PASSES),
    "flip_meets": (between(lambda m, y: y.flip(1) + y), passes(4)),
    "expand": (between(lambda m, y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)), PASSES),
    "broadcast_to": (between(lambda m, y: y.mean((2, 3), keepdim=True).broadcast_to(2, 8, 4, 4)), PASSES),
    "repeat": (between(lambda m, y: y.repeat(1, 2, 1, 1), outputs=16), PASSES),
    "tile": (between(lambda m, y: y.tile(1, 2, 1, 1), outputs=16), PASSES),
    "repeat_unevenly": (
        between(lambda m, y: y.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 1, 1, 1]), 1, output_size=9), outputs=9),
        frozen("repeated unevenly"),
    ),
    "repeat_interleave": (between(lambda m, y: y.repeat_interleave(2, 1), outputs=16), PASSES),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])


def test_space_to_depth_and_back_by_reshapes():
    """Four neighbouring pixels become channels: channels that came from one live and die together."""
    to_depth = between(
        lambda m, y: y.view(2, 4, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 16, 2, 2), width=4, outputs=16
    )
    to_space = between(lambda m, y: y.view(2, 2, 2, 2, 4, 4).permute(0, 3, 4, 1, 5, 2).reshape(2, 2, 8, 8), outputs=2)
    check(to_depth, passes(4))
    check(to_space, passes(2))
