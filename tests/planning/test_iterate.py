"""Pruning in steps: one plan for the dense network, as if every step had been carried out by itself."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from curlfx.coupling import Coupling, couple
from curlfx.errors import BudgetError, PlanError, TargetError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import plan, prune_iteratively
from curlfx.planning.apply import slim


class Net(nn.Module):
    """A residual stream with a grouped and a plain layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.inner, self.grouped = nn.Conv2d(24, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.back, self.head = nn.Conv2d(32, 24, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.grouped(torch.relu(self.inner(x))))
        return self.head(torch.relu(x + self.back(y)).mean((2, 3)))


class Watch:
    """Magnitude, and the networks that it was asked about."""

    def __init__(self) -> None:
        self.seen: list[tuple[TracedModel, Coupling]] = []

    def __call__(self, traced: TracedModel, coupling: Coupling) -> Scores:
        self.seen.append((traced, coupling))
        return score(traced, coupling, "magnitude")


@pytest.fixture(scope="module")
def subject() -> tuple[TracedModel, Coupling]:
    torch.manual_seed(0)
    traced = trace(randomise(Net().double(), 0).eval(), (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
    return traced, couple(traced)


@pytest.mark.parametrize("options", [{}, {"round_to": 4}, {"per": "macs", "floor": 0.1}, {"allocation": "uniform"}])
def test_one_step_is_a_plan(subject: tuple[TracedModel, Coupling], options: dict[str, object]) -> None:
    traced, coupling = subject
    options = {"round_to": 1, **options}
    watch = Watch()
    found = prune_iteratively(traced, coupling, watch, {"macs": "40%"}, 1, **options)
    assert found == plan(traced, coupling, score(traced, coupling, "magnitude"), {"macs": "40%"}, **options)
    assert len(watch.seen) == 1


@pytest.mark.parametrize("per", ["channel", "macs"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_steps_compose(subject: tuple[TracedModel, Coupling], per: str, round_to: int) -> None:
    traced, coupling = subject
    watch = Watch()
    found = prune_iteratively(traced, coupling, watch, {"macs": "40%"}, 3, per=per, round_to=round_to)
    found.check(traced, coupling)
    assert found.after.macs <= 0.4 * found.before.macs
    assert (found.target, found.per) == ({"macs": "40%"}, per)
    assert watch.seen[0] == subject
    chain = [traced, *(network for network, _ in watch.seen[1:]), slim(traced, found)]
    for (before, left), after in zip(watch.seen, chain[1:], strict=True):
        kept = {group.id: found_in(before, after, group.id) for group in left.groups if not group.whole_blocks}
        assert any(len(positions) < left.group(group).width for group, positions in kept.items())
    final = {group.id: found_in(traced, chain[-1], group.id) for group in coupling.groups if not group.whole_blocks}
    composed = {group: tuple(range(coupling.group(group).width)) for group in final}
    for before, after in itertools.pairwise(chain):
        composed = {
            group: tuple(np.array(kept)[list(found_in(before, after, group))]) for group, kept in composed.items()
        }
    assert composed == final
    for group, positions in final.items():
        kept = found.keep.get(group, range(coupling.group(group).width))
        gone = {position for position in kept if "inner.weight#blocks" in found.keep and position not in positions}
        assert set(positions) | gone == set(kept)
        assert not gone or (group != "stem.weight" and len(gone) == len(positions))


def found_in(before: TracedModel, after: TracedModel, group: str) -> tuple[int, ...]:
    """Positions of a layer's channels that are still there, told by the values of their biases, all different."""
    bias = group.replace("weight", "bias")
    old, new = (network.parameter(bias).detach().tolist() for network in (before, after))
    return tuple(old.index(value) for value in new)


def test_scores_of_the_slim_network_decide(subject: tuple[TracedModel, Coupling]) -> None:
    """A criterion that finds half of the channels worthless once others are gone."""
    traced, coupling = subject

    def fickle(network: TracedModel, left: Coupling) -> Scores:
        first = network is traced
        return Scores(
            "fickle", {g.id: np.arange(g.width) if first else g.width - np.arange(g.width) for g in left.groups}
        )

    found = prune_iteratively(traced, coupling, fickle, {"macs": "50%"}, 2, round_to=1)
    one = plan(traced, coupling, fickle(traced, coupling), {"macs": "50%"}, round_to=1)
    stem = coupling.group("stem.weight").width
    assert one.keep["stem.weight"][-1] == stem - 1
    assert found.keep["stem.weight"][0] > 0
    assert found.keep["stem.weight"][-1] < stem - 1


@pytest.mark.parametrize("target", [{"params": "45%"}, {"size_mb": 0.0185}, {"macs": 0.5, "params": "60%"}])
def test_every_target_is_met(subject: tuple[TracedModel, Coupling], target: dict[str, float | str]) -> None:
    traced, coupling = subject
    found = prune_iteratively(traced, coupling, Watch(), target, 4, round_to=1)
    one = plan(traced, coupling, score(traced, coupling, "magnitude"), target, round_to=1)
    for cost in (found.after, one.after):
        assert cost.params <= found.before.params * 0.6
        assert cost.size_bytes < found.before.size_bytes * 0.7


def test_rounding_that_is_ahead_saves_a_step(subject: tuple[TracedModel, Coupling]) -> None:
    traced, coupling = subject
    watch = Watch()
    found = prune_iteratively(traced, coupling, watch, {"macs": "90%"}, 50, round_to=8)
    assert found.after.macs <= 0.9 * found.before.macs
    assert len(watch.seen) < 10


def test_a_group_of_which_one_channel_is_left_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1))
    traced = trace(net, (torch.randn(2, 3, 4, 4),))
    coupling = couple(traced)

    def narrow_first(network: TracedModel, left: Coupling) -> Scores:
        return Scores("own", {g.id: np.full(g.width, float(g.id != "0.weight")) for g in left.groups})

    found = prune_iteratively(traced, coupling, narrow_first, {"macs": "50%"}, 3, round_to=1, floor=0.0)
    assert found.widths["0.weight"] == 1
    assert found.after.macs <= 0.5 * found.before.macs


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_no_steps(subject: tuple[TracedModel, Coupling], steps: object) -> None:
    with pytest.raises(TargetError, match="steps = "):
        prune_iteratively(*subject, Watch(), steps=steps)  # type: ignore[arg-type]


def test_what_cannot_be_reached_and_scores_of_another_network(subject: tuple[TracedModel, Coupling]) -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        prune_iteratively(*subject, Watch(), {"macs": "1%"}, 3)
    traced, coupling = subject
    stale = score(traced, coupling, "magnitude")
    with pytest.raises(PlanError, match=r"scores\['stem.weight'\]: found 24 numbers"):
        prune_iteratively(traced, coupling, lambda *_: stale, {"macs": "50%"}, 2, round_to=1)
