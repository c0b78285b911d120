"""Every invariant over every fixture network, half of every group removed at random."""

from functools import cache

import pytest

from benchmarks.trial import random_keep, relative_error
from tests.networks.fixtures import FIXTURES
from tests.oracles import Keep, Laboratory
from tests.properties import invariants

every_network = pytest.mark.parametrize("name", list(FIXTURES))


@cache
def laboratory(name: str) -> Laboratory:
    case = FIXTURES[name]
    return Laboratory.of(case.build(), case.inputs())


def keep_of(name: str, seed: int = 0, keep_ratio: float = 0.5) -> Keep:
    return random_keep(laboratory(name).coupling.groups, keep_ratio, seed)


@every_network
def test_traced_equals_module(name):
    invariants.same_as_the_original(laboratory(name), FIXTURES[name].build(), FIXTURES[name].inputs())


@every_network
def test_enough_is_free(name):
    case, coupling = FIXTURES[name], laboratory(name).coupling
    assert len(coupling.groups) >= case.free, [(frozen.sites, frozen.reason) for frozen in coupling.frozen]
    assert laboratory(name).changes_statistics(keep_of(name)) == case.statistics


@every_network
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_slim_equals_gated(name, batch):
    if batch != 2 and not FIXTURES[name].dynamic:
        pytest.skip("takes one batch size")
    for seed, ratio in enumerate((0.5, 0.01, 0.8)):
        invariants.slim_equals_gated(laboratory(name), keep_of(name, seed, ratio), FIXTURES[name].inputs(batch))


@every_network
def test_each_group_alone(name):
    keep = keep_of(name, seed=5)
    for group, kept in keep.items():
        invariants.slim_equals_gated(laboratory(name), {group: kept}, FIXTURES[name].inputs())


@every_network
def test_removing_changes_the_output(name):
    """Otherwise the network is blind to its channels and every other test here is empty."""
    whole = invariants.evaluate(laboratory(name).traced.module, FIXTURES[name].inputs())
    for group in keep_of(name):
        keeps = [{group: keep_of(name, seed)[group]} for seed in range(4)]
        slims = [invariants.evaluate(laboratory(name).slim(keep).module, FIXTURES[name].inputs()) for keep in keeps]
        assert max(relative_error(slim, whole) for slim in slims) > 1e-6, group


@every_network
def test_open_gates_change_nothing(name):
    invariants.open_gates_change_nothing(laboratory(name), FIXTURES[name].inputs())


@every_network
def test_cost_is_predicted(name):
    invariants.cost_is_predicted(laboratory(name), keep_of(name))


@every_network
def test_input_is_left_alone(name):
    invariants.input_is_left_alone(laboratory(name), keep_of(name), FIXTURES[name].inputs())


@every_network
def test_empty_keep_set_is_no_change(name):
    invariants.empty_keep_set_is_no_change(laboratory(name))


@every_network
def test_slim_trains(name):
    invariants.slim_trains(laboratory(name), keep_of(name), FIXTURES[name].inputs(3))


@every_network
def test_slim_copies_and_keeps_names(name):
    invariants.slim_copies(laboratory(name), keep_of(name), FIXTURES[name].inputs())
    invariants.slim_keeps_names(laboratory(name), keep_of(name))


@every_network
def test_slim_twice(name):
    invariants.slim_twice_is_slim_once(laboratory(name), keep_of(name), FIXTURES[name].inputs())
