"""Widths as a knapsack, against every choice there is, and against the controls."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import BudgetError, PlanError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import SlimPlan, parse_targets, plan
from curlfx.planning.knapsack import Knapsack
from curlfx.planning.units import make_units
from tests.networks.composed import Recipe
from tests.networks.strategies import networks

Subject = tuple[TracedModel, Coupling, Scores]
FREE = ("1.weight", "3.weight", "5.weight")
NEW = ("knapsack", "greedy")


def additive(seed: int, *, largest: int = 9) -> Subject:
    """A chain in which every second group may go: every layer reads or writes one free group at most."""
    sizes = [3, 6, 9, 4, 10, 8, 11, 5]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 4, 4),))
    coupling = couple(traced, frozen=["0.bias", "2.bias", "4.bias"])
    assert tuple(group.id for group in coupling.groups) == FREE
    generator = np.random.default_rng(seed)
    values = {group.id: generator.integers(0, largest + 1, group.width).astype(float) for group in coupling.groups}
    return traced, coupling, Scores("given", values)


def lost(scores: Scores, found: SlimPlan) -> float:
    """Sum of the scores of what goes."""
    return sum(float(np.delete(scores.values[group], kept).sum()) for group, kept in found.keep.items())


def least_loss(subject: Subject, target: Mapping[str, float | str]) -> float:
    """The smallest loss of all choices of widths, each of which keeps the best channels of every group."""
    traced, coupling, scores = subject
    costs = CostModel(traced, coupling)
    targets = parse_targets(target, costs.dense)
    best = math.inf
    orders = [np.argsort(-scores.values[group.id], kind="stable") for group in coupling.groups]
    for kept in itertools.product(*(range(1, group.width + 1) for group in coupling.groups)):
        rows = [order[:count] for order, count in zip(orders, kept, strict=True)]
        loss = sum(
            float(scores.values[group.id].sum() - scores.values[group.id][row].sum())
            for group, row in zip(coupling.groups, rows, strict=True)
        )
        if loss < best:
            alive = coupling.alive(
                {group.id: tuple(sorted(row.tolist())) for group, row in zip(coupling.groups, rows, strict=True)}
            )
            cost = costs.evaluate(alive)
            best = loss if all(each.met(cost) for each in targets) else best
    return best


@pytest.mark.parametrize(
    ("seed", "target"),
    [
        *((seed, {"macs": share}) for seed, share in enumerate((0.9, 0.75, 0.6, 0.5, 0.4, 0.3))),
        (6, {"macs": 0.6, "params": 0.55}),
        (7, {"macs": 0.7, "params": 0.4}),
        (8, {"params": 0.5, "size_mb": 0.005}),
    ],
)
def test_nothing_that_meets_the_bounds_loses_less(seed: int, target: dict[str, float]) -> None:
    subject = additive(seed)
    found = plan(*subject, target, round_to=1, floor=0.0, allocation="knapsack")
    traced, coupling, scores = subject
    costs = CostModel(traced, coupling)
    assert all(each.met(found.after) for each in parse_targets(target, costs.dense))
    assert found.after == costs.evaluate(coupling.alive(found.keep))
    assert lost(scores, found) == least_loss(subject, target)


def test_the_best_channels_of_every_group_stay() -> None:
    subject = additive(11)
    found = plan(*subject, {"macs": "50%"}, round_to=1, floor=0.0, allocation="knapsack")
    for group, kept in found.keep.items():
        values = subject[2].values[group]
        assert np.delete(values, kept).max() <= values[list(kept)].min()


@pytest.mark.parametrize("allocation", NEW)
@pytest.mark.parametrize(("round_to", "floor"), [(1, 0.0), (1, 0.5), (4, 0.3), (8, 0.0)])
def test_widths_are_those_that_a_plan_may_have(allocation: str, round_to: int, floor: float) -> None:
    sizes = [3, 24, 48, 32, 40, 5]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    scores = score(traced, coupling, "random", seed=2)
    options = {"round_to": round_to, "floor": floor}
    found = plan(traced, coupling, scores, {"macs": "60%"}, allocation=allocation, **options)  # type: ignore[arg-type]
    units = make_units(coupling, scores)
    assert found.after.macs <= 0.6 * found.before.macs
    for group, size, step in zip(units.ids, units.sizes, units.steps(round_to), strict=True):
        assert found.widths[group] == size or found.widths[group] % step == 0
        assert found.widths[group] >= size * floor - max(1, step)
    assert found.keep != plan(traced, coupling, scores, {"macs": "60%"}, **options).keep  # type: ignore[arg-type]


class TwoPaths(nn.Module):
    """A grouped convolution between two plain ones: whole groups may go, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))


@pytest.mark.parametrize("allocation", NEW)
def test_blocks_stay_equal(allocation: str) -> None:
    traced = trace(TwoPaths(), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    scores = score(traced, coupling, "random", seed=1)
    found = plan(traced, coupling, scores, {"macs": "50%"}, round_to=1, allocation=allocation)  # type: ignore[arg-type]
    assert found.after.macs <= 0.5 * found.before.macs
    found.check(traced, coupling)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(recipe=networks(max_depth=4), share=st.sampled_from((0.85, 0.6, 0.4)))
def test_generated_networks(recipe: Recipe, share: float) -> None:
    """Bounds hold, and the knapsack loses no more than the ranking and the steps; greedy meets the bounds too."""
    traced = trace(recipe.build(), recipe.inputs())
    coupling = couple(traced)
    scores = score(traced, coupling, "random", seed=recipe.seed)
    target = {"params": share, "macs": min(1.0, share + 0.1)}
    costs = CostModel(traced, coupling)
    try:
        ranked = plan(traced, coupling, scores, target, round_to=1, floor=0.0, costs=costs)
    except BudgetError:
        for allocation in NEW:
            with pytest.raises(BudgetError):
                plan(traced, coupling, scores, target, round_to=1, floor=0.0, allocation=allocation, costs=costs)  # type: ignore[arg-type]
        return
    best, stepwise = (
        plan(traced, coupling, scores, target, round_to=1, floor=0.0, allocation=allocation, costs=costs)  # type: ignore[arg-type]
        for allocation in NEW
    )
    for found in (best, stepwise):
        assert all(each.met(found.after) for each in parse_targets(target, costs.dense))
        found.check(traced, coupling)
    assert lost(scores, best) <= min(lost(scores, ranked), lost(scores, stepwise)) * (1 + 1e-12)


def test_steps_take_what_loses_least_for_what_it_saves() -> None:
    """One channel of each group in turn, by hand: 3 -> 2 -> 3 -> 5 channels, 1x1, one position, nothing frozen."""
    layers = [nn.Conv2d(a, b, 1, bias=False) for a, b in ((3, 2), (2, 3), (3, 5))]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 1, 1),))
    coupling = couple(traced)
    scores = Scores("given", {"0.weight": np.array([1.0, 9.0]), "1.weight": np.array([3.0, 1.2, 9.0])})
    # dense 6 + 6 + 15 = 27; a channel of the first group saves 3 + 3 = 6, one of the second 2 + 5 = 7
    first = plan(traced, coupling, scores, {"macs": 21}, round_to=1, floor=0.0, allocation="greedy")
    assert first.keep == {"0.weight": (1,)}  # 1 for 6 goes before 1.2 for 6: more than what is missing counts nothing
    second = plan(traced, coupling, scores, {"macs": 20}, round_to=1, floor=0.0, allocation="greedy")
    assert second.keep == {"0.weight": (1,), "1.weight": (0, 2)}  # 1 / 6 before 1.2 / 7, and then one more
    third = plan(traced, coupling, scores, {"macs": 20}, round_to=1, floor=0.0, allocation="knapsack")
    assert third.keep == {"1.weight": (0, 2)}
    assert (second.provenance["rounds"], "gap" in second.provenance) == (2, False)
    dearer = Scores("given", {**scores.values, "0.weight": np.array([2.0, 9.0])})
    last = plan(traced, coupling, dearer, {"macs": 21}, round_to=1, floor=0.0, allocation="greedy")
    assert last.keep == {"1.weight": (0, 2)}


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"macs": 0.6, "params": 0.3}, {"padded_macs": 0.4}])
def test_a_bad_start_is_left(target: dict[str, float]) -> None:
    """From as little as can be left, where everything that comes back costs more than it seems to, layer by layer."""
    sizes = [3, 24, 48, 32, 40, 5]
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    scores = score(traced, coupling, "random", seed=4)
    units, costs = make_units(coupling, scores), CostModel(traced, coupling)
    caps = units.sizes - 1
    problem = Knapsack(units, costs, parse_targets(target, costs.dense), caps, np.ones_like(caps))
    found = problem.solve(caps)
    assert (problem.values(found.removed) <= problem.limits).all()
    assert found.loss == problem.loss(found.removed)
    best = plan(traced, coupling, scores, target, round_to=1, floor=0.0, allocation="knapsack", costs=costs)
    assert found.loss <= 1.03 * lost(scores, best)
    assert found.loss < problem.loss(caps) / 2


@pytest.mark.parametrize("allocation", NEW)
def test_what_has_no_sum_is_refused(allocation: str) -> None:
    traced, coupling, scores = additive(0)
    options = {"target": {"macs": "50%"}, "round_to": 1, "allocation": allocation}
    for per in ("macs", "padded_macs", dict.fromkeys(FREE, 1.0)):
        with pytest.raises(PlanError, match="a knapsack weighs costs itself; leave it out, or allocation='global'"):
            plan(traced, coupling, scores, per=per, **options)  # type: ignore[arg-type]
    below = Scores("given", {group: values - 0.5 for group, values in scores.values.items()})
    with pytest.raises(PlanError, match=r"scores: the lowest is -0\.5: a knapsack .* wants scores of at least 0"):
        plan(traced, coupling, below, **options)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="cannot be reached"):
        plan(traced, coupling, scores, **{**options, "target": {"macs": "10%"}})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="want one of global, uniform, knapsack, greedy"):
        plan(traced, coupling, scores, **{**options, "allocation": "best"})  # type: ignore[arg-type]


@pytest.mark.parametrize("allocation", NEW)
def test_plans_read_back_and_repeat(allocation: str) -> None:
    subject = additive(3)
    one, other = (
        plan(*subject, {"macs": "50%"}, round_to=1, allocation=allocation)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert one.to_json() == other.to_json()
    assert SlimPlan.from_json(one.to_json()) == one
    assert one.allocation == allocation
    assert one.provenance["rounds"] >= 1  # type: ignore[operator]
    if allocation == "knapsack":
        assert 0 <= one.provenance["gap"] <= 1e-3  # type: ignore[operator]


@pytest.mark.parametrize("allocation", NEW)
@pytest.mark.parametrize("frozen", [(), ("0", "2")])
def test_an_easy_target_removes_nothing(allocation: str, frozen: tuple[str, ...]) -> None:
    """Nor does it need anything that could go."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    traced = trace(net, (torch.randn(2, 3, 4, 4),))
    coupling = couple(traced, frozen=frozen)
    found = plan(
        traced,
        coupling,
        score(traced, coupling, "random"),
        {"macs": "100%"},
        allocation=allocation,  # type: ignore[arg-type]
    )
    assert found.keep == {}
    assert found.after == found.before


def test_the_loss_counts_every_channel_of_a_unit() -> None:
    """A unit of a group with blocks is a channel of every block, and its score their mean."""
    traced = trace(TwoPaths(), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    scores = score(traced, coupling, "random", seed=1)
    units, costs = make_units(coupling, scores), CostModel(traced, coupling)
    targets = parse_targets({"macs": "50%"}, costs.dense)
    problem = Knapsack(units, costs, targets, units.sizes - 1, np.ones_like(units.sizes))
    for position, group in enumerate(coupling.groups):
        removed = np.zeros_like(units.sizes)
        removed[position] = units.sizes[position] - 1
        dead = ~units.alive(removed)[group.channels]
        assert problem.loss(removed) == pytest.approx(scores.values[group.id][dead].sum())
