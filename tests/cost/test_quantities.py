"""Sizes as shares of the dense network's, against networks that are really slimmed."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import random_keep
from curlfx.cost import macs
from curlfx.cost.contraction import contractions
from curlfx.cost.quantities import Quantities
from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from tests.networks.fixtures import FIXTURES

RATIOS = (0.2, 0.4, 0.6, 0.8)


def elements(traced: TracedModel) -> dict[str, int]:
    """Elements of what every node computes, by node."""
    values = {node.name: node.meta.get("val") for node in traced.graph.nodes if node.op != "get_attr"}
    return {name: value.numel() for name, value in values.items() if isinstance(value, Tensor)}


def columns(counts: list[dict[str, int]]) -> set[tuple[float, ...]]:
    """What is left of everything that is counted, in all networks, the dense one first."""
    dense, *slim = counts
    there = [name for name, number in dense.items() if number and all(name in other for other in slim)]
    return {tuple(other[name] / dense[name] for other in counts) for name in there}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_shares_are_those_of_slim_networks(name: str) -> None:
    case = FIXTURES[name]
    traced = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = couple(traced)
    quantities = Quantities.of(traced, coupling)
    keeps = [{}, *(random_keep(coupling.groups, ratio, seed=seed) for seed, ratio in enumerate(RATIOS))]
    networks = [traced, *(run(traced, [Slim(coupling, keep)], own_weights=False)[0] for keep in keeps[1:])]
    shares = np.stack([quantities.shares(coupling.alive(keep)) for keep in keeps])
    assert np.array_equal(shares[0], np.ones_like(shares[0]))
    assert np.array_equal(shares[:, -1], np.ones((len(keeps), 2)))  # the constant
    found = {tuple(column) for column in shares[:, :, 0].T.tolist()}
    work, written = (columns([count(network) for network in networks]) for count in (macs, elements))
    single = all(len(contractions(node, coupling.rules)) < 2 for node in traced.graph.nodes)
    assert written <= found
    if single:  # else a node's multiply-adds are the sum of several quantities
        assert found <= written | work
        assert work <= found


def chain(*widths: int) -> tuple[TracedModel, Coupling]:
    sizes = [3, *widths, 5]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 4, 4),))
    return traced, couple(traced)


def test_padded_shares_by_hand() -> None:
    """Of 3 -> 24 -> 40 -> 5 channels 24 become 20 and 40 become 33: 32 and 48 in blocks of 16."""
    traced, coupling = chain(24, 40)
    keep = {"0.weight": tuple(range(20)), "1.weight": tuple(range(33))}
    found = Quantities.of(traced, coupling, block=16).shares(coupling.alive(keep))
    activations = [(20 / 24, 32 / 32), (33 / 40, 48 / 48)]
    work = [(20 / 24, 32 / 32), (20 * 33 / (24 * 40), 32 * 48 / (32 * 48)), (33 / 40, 48 / 48)]
    assert {tuple(row) for row in found.tolist()} == {*activations, *work, (1.0, 1.0)}
    keep = {"0.weight": tuple(range(16)), "1.weight": tuple(range(3))}
    found = Quantities.of(traced, coupling, block=16).shares(coupling.alive(keep))
    want = {(16 / 24, 16 / 32), (3 / 40, 3 / 48), (16 * 3 / (24 * 40), 16 * 3 / (32 * 48)), (1.0, 1.0)}
    assert {tuple(row) for row in found.tolist()} >= want


def test_each_quantity_is_there_once() -> None:
    """ReLUs and additions write as much as the convolutions before them."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Sigmoid()]
    traced = trace(nn.Sequential(*layers, nn.Conv2d(8, 2, 1)), (torch.randn(2, 3, 4, 4),))
    quantities = Quantities.of(traced, couple(traced))
    assert len(quantities.boxes) == 2 + 3 + 1  # two activations, three contractions, the constant


def test_some_of_them_in_another_order() -> None:
    traced, coupling = chain(24, 40, 8)
    quantities = Quantities.of(traced, coupling)
    alive = coupling.alive(random_keep(coupling.groups, 0.5, seed=1))
    picked = [len(quantities.boxes) - 1, 2, 0]
    assert np.array_equal(quantities.only(picked).shares(alive), quantities.shares(alive)[picked])
    assert quantities.only([]).shares(alive).shape == (0, 2)
