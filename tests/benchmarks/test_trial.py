"""Random statistics, random keep sets and relative errors, which the other tests and the tables stand on."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.trial import flatten_outputs, random_keep, randomise, relative_error


@dataclass(frozen=True)
class Group:
    id: str
    width: int
    blocks: np.ndarray | None = None


def test_random_keep_respects_blocks():
    blocks = np.array([0, 1, 0, 1, 0, 1])
    for seed in range(10):
        kept = random_keep([Group("a", 6, blocks)], 0.5, seed)["a"]
        assert list(kept) == sorted(set(kept))
        assert np.bincount(blocks[list(kept)]).tolist() == [2, 2]


def test_random_keep_keeps_one_and_skips_what_stays_whole():
    keep = random_keep([Group("a", 5), Group("b", 1), Group("c", 2, np.array([0, 1]))], 0.01)
    assert list(keep) == ["a"]
    assert len(keep["a"]) == 1
    assert random_keep([Group("a", 5)], 1.0) == {}


def test_random_keep_is_deterministic():
    groups = [Group("a", 50), Group("b", 50)]
    assert random_keep(groups, 0.5, 1) == random_keep(groups, 0.5, 1)
    assert random_keep(groups, 0.5, 1) != random_keep(groups, 0.5, 2)
    assert random_keep(groups, 0.5, 1)["a"] != random_keep(groups, 0.5, 1)["b"]


def test_randomise_leaves_no_two_channels_alike():
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.LayerNorm([8]), nn.GroupNorm(2, 8))
    module.register_parameter("scale", nn.Parameter(torch.full((8, 1, 1), 1e-6)))
    state = torch.random.get_rng_state()
    randomise(module, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in module.state_dict().items():
        if tensor.ndim:
            assert tensor.flatten().unique().numel() == tensor.numel(), name
    assert (module[1].running_var > 0).all()


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        (torch.ones(3), torch.ones(3), 0.0),
        (torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]), 0.125),
        (torch.ones(3), torch.ones(1, 3), float("inf")),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.ones(2), torch.zeros(2), float("inf")),
        (torch.tensor([float("nan")]), torch.ones(1), float("inf")),
        ((torch.ones(1), torch.ones(1)), (torch.ones(1), torch.full((1,), 2.0)), 0.5),
        (torch.ones(1), (torch.ones(1), torch.ones(1)), float("inf")),
        ((), (), float("inf")),
    ],
)
def test_relative_error(actual, expected, error):
    assert relative_error(actual, expected) == error


def test_outputs_of_dictionaries_come_in_key_order():
    one, two = torch.ones(1), torch.zeros(1)
    assert [t.item() for t in flatten_outputs({"b": [one], "a": two, "c": None})] == [0.0, 1.0]
