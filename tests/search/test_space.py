"""Search spaces: grids by hand, blocks, budgets."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from curlfx.cost import CostModel
from curlfx.coupling import couple
from curlfx.errors import BudgetError, ConfigError
from curlfx.graph import trace
from curlfx.importance import Scores
from curlfx.search.budget import Budget
from curlfx.search.space import Space
from tests.networks.net import between
from tests.search.networks import Chain, Toy, images


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.of(couple(trace(Chain().double().eval(), (images(2),))))


def test_grids_by_hand(space: Space) -> None:
    assert space.units.ids[:3] == ("stem.weight", "inner.weight", "expand.weight")
    assert space.grids[0] == (2, 3, 4, 5, 6, 7, 8)  # round(8 * (0.2, 0.3 … 1)), half up, each once
    assert space.grids[2] == (3, 5, 6, 8, 10, 11, 13, 14, 16)
    assert space.tiny[0] == 2
    assert space.full[:3] == (8, 8, 16)
    assert space.size == np.prod([len(grid) for grid in space.grids])


def test_widths_are_multiples_of_the_divisor() -> None:
    coupling = couple(
        trace(nn.Sequential(nn.Conv2d(3, 128, 1), nn.ReLU(), nn.Conv2d(128, 4, 1)).eval(), (torch.ones(2, 3, 4, 4),))
    )
    assert Space.of(coupling).grids == ((24, 40, 48, 64, 80, 88, 104, 112, 128),)
    assert Space.of(coupling, divisor=1).grids[0][0] == 26
    assert Space.of(coupling, least=0.5, step=0.25).grids == ((64, 96, 128),)


def test_the_best_channels_stay(space: Space) -> None:
    rng = np.random.default_rng(0)
    scores = Scores("random", {group.id: rng.random(group.width) for group in space.coupling.groups})
    own = Space.of(space.coupling, scores)
    for genome in (own.tiny, own.random(rng)):
        for group, kept in own.keep(genome).items():
            values = scores.values[group]
            assert values[list(kept)].min() > np.delete(values, kept).max()
            assert len(kept) == own.widths(genome)[group]
        assert (own.alive(genome) == own.coupling.alive(own.keep(genome))).all()


def test_groups_of_blocks_lose_a_channel_of_every_block() -> None:
    net = between(lambda net, x: functional.pixel_shuffle(net.grouped(x), 1), grouped=nn.Conv2d(8, 8, 1, groups=2))
    coupling = couple(trace(net.double().eval(), (torch.randn(2, 3, 4, 4, dtype=torch.float64),)))
    space = Space.of(coupling)
    blocked = [
        position
        for position, group in enumerate(coupling.groups)
        if group.blocks is not None and not group.whole_blocks
    ]
    assert blocked
    for position in blocked:
        assert space.units.blocks[position] == 2
        assert space.grids[position] == (1, 2, 3, 4)
    assert (space.alive(space.tiny) == coupling.alive(space.keep(space.tiny))).all()


@pytest.mark.parametrize(
    ("options", "message"), [({"least": 0}, "least = 0"), ({"step": 2}, "step = 2"), ({"divisor": 0}, "divisor = 0")]
)
def test_refuses(space: Space, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space.of(space.coupling, **options)  # type: ignore[arg-type]


def test_random_networks_hold_and_are_not_far_below(space: Space) -> None:
    traced = trace(Chain().double().eval(), (images(2),))
    budget = Budget(space, CostModel(traced, space.coupling), {"macs": "40%", "params": "60%"})
    generator = np.random.default_rng(0)
    found = {budget.random(generator) for _ in range(20)} - {None}
    assert len(found) > 10
    dense = budget.costs.dense
    for genome in found:
        assert genome is not None
        cost = budget.cost(genome)
        shares = Fraction(cost.macs * 10, dense.macs * 4), Fraction(cost.params * 10, dense.params * 6)
        assert Fraction(95, 100) <= max(shares) <= 1


def test_uniform_widths_are_the_widest_that_hold(space: Space) -> None:
    traced = trace(Chain().double().eval(), (images(2),))
    budget = Budget(space, CostModel(traced, space.coupling), {"macs": "40%"})
    genome = budget.uniform()
    shares = np.array(genome) / space.units.sizes
    assert budget.met(genome)
    assert shares.max() - shares.min() <= 1 / space.units.sizes.min()


def test_an_unreachable_target_says_what_can_be_reached(space: Space) -> None:
    traced = trace(Toy().double().eval(), (images(2),))
    toy = Space.of(couple(traced), least=0.5)
    with pytest.raises(BudgetError, match=r"macs 10 % of dense cannot be reached: the narrowest network .* has 3\d"):
        Budget(toy, CostModel(traced, toy.coupling), {"macs": "10%"})
