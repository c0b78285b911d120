"""Latency from times of nodes that are known sums of sizes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.trial import random_keep
from curlfx.cost import CostModel, LatencyModel
from curlfx.cost.counting import Alive, Floats
from curlfx.cost.latency import NodeSamples
from curlfx.cost.quantities import Quantities
from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.planning.probes import random_widths

WIDTHS = (3, 24, 40, 32, 5)
Subject = tuple[TracedModel, Coupling, list[Alive]]


@pytest.fixture(scope="module")
def subject() -> Subject:
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(WIDTHS)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    probes = random_widths(coupling, 24, round_to=1, seed=0)
    return traced, coupling, [coupling.alive(keep) for keep in ({}, *probes)]


def widths(coupling: Coupling, alive: Alive) -> list[int]:
    """Channels of every activation."""
    return [WIDTHS[0], *(int(alive[group.channels].sum()) for group in coupling.groups), WIDTHS[-1]]


def padded(channels: int) -> int:
    return channels if channels < 4 else -(-channels // 16) * 16


def times(coupling: Coupling, alive: Alive) -> Floats:
    """Milliseconds of every convolution, by hand: a constant, what it reads and writes, its multiply-adds in blocks."""
    found = []
    own = widths(coupling, alive)
    for layer, (read, written) in enumerate(pairwise(own)):
        work = padded(read) * padded(written) / 1000
        found.append(0.05 + 0.01 * layer + 0.002 * read + 0.003 * written + work * (1 + layer))
    return np.array(found)


def samples(coupling: Coupling, alive: list[Alive]) -> list[NodeSamples]:
    taken = np.stack([times(coupling, each) for each in alive], axis=1)
    own = np.array([widths(coupling, each) for each in alive], float).T
    return [
        NodeSamples(f"conv{layer}", "Conv", 64 * np.stack([written, read, read * written * 9]), taken[layer])
        for layer, (read, written) in enumerate(pairwise(own))
    ]


def unseen(coupling: Coupling) -> list[Alive]:
    ratios = np.linspace(0.1, 0.95, 12).tolist()
    return [coupling.alive(random_keep(coupling.groups, ratio, seed=number)) for number, ratio in enumerate(ratios)]


@pytest.mark.slow
def test_exact_times_are_found_again(subject: Subject) -> None:
    traced, coupling, alive = subject
    model = LatencyModel.fit(Quantities.of(traced, coupling), alive, samples(coupling, alive))
    assert model.unexplained == 0
    assert (model.weights >= 0).all()
    for each in (*alive, *unseen(coupling)):
        want = times(coupling, each)
        assert model.predict(each) == pytest.approx(want.sum(), rel=1e-9)
        by_node = model.node_ms(each)
        assert list(by_node) == [f"conv{layer}" for layer in range(len(WIDTHS) - 1)]
        np.testing.assert_allclose(list(by_node.values()), want, rtol=1e-9)
        assert CostModel(traced, coupling, latency=model).evaluate(each).latency_ms == model.predict(each)


def test_exact_times_are_predicted_from_the_others(subject: Subject) -> None:
    traced, coupling, alive = subject
    found = LatencyModel.cross_validate(Quantities.of(traced, coupling), alive, samples(coupling, alive))
    assert found.shape == (len(alive),)
    assert found[0] == 0
    assert np.abs(found).max() < 1e-9


def test_a_wrong_measurement_is_predicted_otherwise(subject: Subject) -> None:
    """One network was measured at half its speed; the others say so."""
    traced, coupling, alive = subject
    nodes = samples(coupling, alive)
    for node in nodes:
        node.milliseconds[7] *= 2
    found = LatencyModel.cross_validate(Quantities.of(traced, coupling), alive, nodes)
    assert found[7] == pytest.approx(-0.5, abs=1e-9)
    assert np.abs(np.delete(found, 7)).max() < 0.4


def test_a_node_of_another_size_is_unexplained(subject: Subject) -> None:
    """It takes the nearest there is, and its time in the dense network is counted."""
    traced, coupling, alive = subject
    nodes = samples(coupling, alive)
    size = np.sqrt(np.array([widths(coupling, each)[2] for each in alive], float))
    nodes.append(NodeSamples("strange", "Sort", np.stack([size, 0 * size, 0 * size]), size))
    model = LatencyModel.fit(Quantities.of(traced, coupling), alive, nodes)
    whole = sum(node.milliseconds[0] for node in nodes)
    assert model.unexplained == pytest.approx(size[0] / whole)
    assert model.node_ms(alive[0])["strange"] > 0


def test_nodes_that_some_networks_lack_do_not_add_up_in_all(subject: Subject) -> None:
    """What only some networks have counts by halves in all, so that predictions lie on both sides of what was measured.

    A reordering of memory, say, that the dense network needs and most narrow ones do not.
    """
    traced, coupling, alive = subject
    nodes, count = samples(coupling, alive), len(alive)
    has = np.arange(count) % 3 == 0
    for number in range(4):
        size = np.where(has, 5.0, np.nan)
        nodes.append(NodeSamples(f"reorder{number}", "ReorderOutput", np.stack([size] * 3), np.where(has, 0.5, 0.0)))
    model = LatencyModel.fit(Quantities.of(traced, coupling), alive, nodes)
    measured = np.sum([node.milliseconds for node in nodes], axis=0)
    errors = np.array([model.predict(each) for each in alive]) / measured - 1
    assert errors[has].mean() < -0.01
    assert errors[~has].mean() > 0.01
    assert abs(errors.mean()) < 0.25 * np.abs(errors).max()


def test_latency_never_grows_when_channels_go(subject: Subject) -> None:
    """Whatever was measured: here, noise."""
    traced, coupling, alive = subject
    nodes, generator = samples(coupling, alive), np.random.default_rng(5)
    for node in nodes:
        node.milliseconds[:] = generator.uniform(0.1, 1.0, len(alive))
    model = LatencyModel.fit(Quantities.of(traced, coupling), alive, nodes)
    left = alive[0].copy()
    found = [model.predict(left)]
    for group in coupling.groups:
        for channel in group.channels[1:]:
            left[channel] = False
            found.append(model.predict(left))
    assert found[-1] > 0
    assert (np.diff(found) <= 1e-12).all()


def test_nodes_that_do_not_depend_on_channels_are_constant(subject: Subject) -> None:
    traced, coupling, alive = subject
    same = np.full(len(alive), 7.0)
    node = NodeSamples("softmax", "Softmax", np.stack([same, same, 0 * same]), 0.3 * np.ones(len(alive)))
    model = LatencyModel.fit(Quantities.of(traced, coupling), alive, [node])
    assert model.unexplained == 0
    assert [model.predict(each) for each in unseen(coupling)] == pytest.approx([0.3] * 12)


def test_no_node_takes_no_time(subject: Subject) -> None:
    traced, coupling, alive = subject
    quantities = Quantities.of(traced, coupling)
    model = LatencyModel.fit(quantities, alive, [])
    assert (model.unexplained, model.names, model.node_ms(alive[0])) == (0, (), {})
    assert [model.predict(each) for each in alive] == [0] * len(alive)
    assert CostModel(traced, coupling, latency=model).dense.latency_ms == 0
    assert LatencyModel.cross_validate(quantities, alive, []).tolist() == [0] * len(alive)
