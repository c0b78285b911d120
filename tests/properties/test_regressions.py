"""The smallest networks on which a generated network once went wrong."""

import pytest
import torch
from torch import nn

from benchmarks.trial import random_keep, randomise
from tests.oracles import Laboratory
from tests.properties import invariants

IMAGES = (torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8).sin(),)


def chain(*layers):
    return randomise(nn.Sequential(*layers).double()).eval()


class Transposed(nn.Module):
    """A layer over the last two axes the other way round."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


NETWORKS = {
    # Batch statistics of tokens run over the channels: they stay (with running statistics they would be free).
    "batch_statistics_of_tokens": lambda: chain(
        nn.Conv2d(3, 4, 1),
        nn.Flatten(2),
        Transposed(nn.BatchNorm1d(64, track_running_stats=False)),
        nn.Conv1d(4, 4, 1),
        nn.ReLU(),
        nn.Conv1d(4, 2, 1),
    ),
    # A grouped convolution that makes one channel per group but is not depthwise: whole groups cannot go.
    "one_channel_per_group": lambda: chain(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, groups=2), nn.ReLU(), nn.Conv2d(2, 2, 1)
    ),
    # A GroupNorm group that is removed whole: statistics over its kept channels were 0 / 0.
    "group_norm_per_channel": lambda: chain(nn.Conv2d(3, 4, 1), nn.GroupNorm(4, 4), nn.Sigmoid(), nn.Conv2d(4, 2, 1)),
    # Depthwise transposed convolution: the groups follow the channels.
    "depthwise_transposed": lambda: chain(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2, 2, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ),
    # Grouped transposed convolution: frozen, and its groups stay as they are.
    "grouped_transposed": lambda: chain(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2, groups=2), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)
    ),
    # Nothing is free: an empty keep set is all there is.
    "frozen_whole": lambda: chain(nn.Conv2d(3, 2, 1)),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_regression(name):
    laboratory = Laboratory.of(NETWORKS[name](), IMAGES)
    for ratio in (0.5, 0.01):
        keep = random_keep(laboratory.coupling.groups, ratio)
        invariants.slim_equals_gated(laboratory, keep, IMAGES)
        invariants.cost_is_predicted(laboratory, keep)
        invariants.slim_twice_is_slim_once(laboratory, keep, IMAGES)
    invariants.empty_keep_set_is_no_change(laboratory)
