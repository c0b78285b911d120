"""Widths to measure."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores
from curlfx.planning.probes import random_widths
from curlfx.planning.units import make_units
from tests.networks.fixtures import FIXTURES


@pytest.fixture(scope="module")
def subject() -> tuple[TracedModel, Coupling]:
    sizes = [3, 64, 128, 96, 48, 5]
    layers = [nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(sizes)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 4, 4),))
    return traced, couple(traced)


def first(coupling: Coupling) -> Scores:
    return Scores("first", {group.id: -np.arange(group.width, dtype=float) for group in coupling.groups})


@pytest.mark.parametrize("round_to", [1, 8, 16])
def test_widths_are_multiples(subject: tuple[TracedModel, Coupling], round_to: int) -> None:
    _, coupling = subject
    for keep in random_widths(coupling, 30, round_to=round_to, seed=1):
        coupling.alive(keep)
        for group in coupling.groups:
            kept = keep.get(group.id, tuple(range(group.width)))
            assert kept == tuple(range(len(kept)))  # the first ones
            assert len(kept) == group.width or len(kept) % round_to == 0


def test_they_go_from_nearly_whole_to_a_tenth(subject: tuple[TracedModel, Coupling]) -> None:
    traced, coupling = subject
    costs = CostModel(traced, coupling)
    probes = random_widths(coupling, 24, round_to=8, seed=0)
    shares = [costs.evaluate(coupling.alive(keep)).macs / costs.dense.macs for keep in probes]
    assert min(shares) < 0.2
    assert max(shares) > 0.75
    assert len(set(shares)) == len(probes)


def test_every_group_has_a_width_of_its_own(subject: tuple[TracedModel, Coupling]) -> None:
    """Else what reads one group cannot be told from what reads another."""
    _, coupling = subject
    probes = random_widths(coupling, 24, round_to=1, seed=0)
    kept = np.array([[len(keep.get(group.id, range(group.width))) for group in coupling.groups] for keep in probes])
    shares = kept / np.array([group.width for group in coupling.groups])
    assert (np.abs(shares - shares.mean(axis=1, keepdims=True)).max(axis=1) > 0.02).all()
    assert np.linalg.matrix_rank(shares - shares.mean(axis=0), tol=0.1) == len(coupling.groups)


def test_the_seed_decides(subject: tuple[TracedModel, Coupling]) -> None:
    _, coupling = subject
    one, again, other = (random_widths(coupling, 5, round_to=8, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert len(random_widths(coupling, 1, round_to=8, seed=3)) == 1


def test_none_comes_twice_where_others_are_left() -> None:
    """Of one group of 16 there are 15 narrower widths; of two widths there is one."""
    traced = trace(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)), (torch.randn(2, 3, 4, 4),))
    coupling = couple(traced)
    for seed in range(5):
        found = [tuple(keep.items()) for keep in random_widths(coupling, 8, round_to=1, seed=seed)]
        assert len({*found}) == 8
        assert () not in found
    halves = random_widths(coupling, 5, round_to=16, seed=0)
    assert {"0.weight": tuple(range(8))} in halves
    assert len(halves) == 5


def test_nothing_can_go() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 16, 1)), (torch.randn(2, 3, 4, 4),))
    assert random_widths(couple(traced), 3, round_to=8, seed=0) == [{}] * 3


@pytest.mark.parametrize("name", ["grouped_conv", "attention_fused", "shuffle_v1", "group_norm"])
def test_blocks_stay_equal(name: str) -> None:
    case = FIXTURES[name]
    traced = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = couple(traced)
    steps = make_units(coupling, first(coupling)).steps(2)
    for keep in random_widths(coupling, 10, round_to=2, seed=0):
        coupling.alive(keep)  # refuses unequal blocks
        for group, step in zip(coupling.groups, steps.tolist(), strict=True):
            kept = len(keep.get(group.id, range(group.width)))
            blocks = 1 if group.blocks is None else len(set(group.blocks))
            assert kept == group.width or kept // blocks % step == 0
