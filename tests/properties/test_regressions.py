"""The smallest networks on which a generated network once went wrong."""

import random

import pytest
import torch
from torch import nn

from benchmarks.trial import random_keep, randomise
from tests.networks.composed import (
    Concat,
    Einsum,
    Grouped,
    InvertedResidual,
    Norm,
    OptionA,
    Patches,
    Raw,
    Recipe,
    Selective,
    ThroughLinear,
)
from tests.networks.strategies import draw_keep
from tests.oracles import Laboratory
from tests.properties import invariants
from tests.properties.examination import examine

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


RECIPES = {
    # A block's label did not reach the layer before a softmax over branches.
    "groups_weighed_by_branch": Recipe(steps=(Selective(norm="group"),)),
    # Blocks in blocks, of which the outer ones are merged again.
    "flattened_inside": Recipe(steps=(ThroughLinear(), Raw(how="product"))),
    # A group of a convolution reads two layers: one channel per group could leave nothing of one of them.
    "group_of_two_layers": Recipe(stem=6, steps=(Concat(), Grouped(width=1))),
    # Heads and the groups of a normalisation are the same channels.
    "heads_and_groups": Recipe(steps=(Einsum(how="heads"), InvertedResidual(expansion=1, norm="group"))),
    # A whole group of one normalisation is a part of what the next one averages over.
    "groups_inside_a_statistic": Recipe(steps=(Norm(norm="group"), Norm(norm="whole"))),
    "heads_inside_a_statistic": Recipe(steps=(Einsum(how="heads"), Norm(norm="whole"))),
    # Coupling did not end: tokens without labels are flattened beside others.
    "flattened_registers": Recipe(patches=Patches(width=3, extra=3, positions="parameter"), head="flatten"),
    # Padding along the outer one of three labelled axes.
    "padded_blocks": Recipe(steps=(ThroughLinear(width=2, how="view"), OptionA(sides="after"))),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_composed_regression(name):
    chooser = random.Random(0)
    examine(RECIPES[name], lambda coupling: draw_keep(chooser.choice, coupling.groups), keeps=5, onnx=False)
