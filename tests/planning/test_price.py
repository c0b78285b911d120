"""Scores per cost of a channel."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, Group, couple
from curlfx.errors import PlanError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import plan
from curlfx.planning.price import priced, resolve_per

Subject = tuple[TracedModel, Coupling, Scores]


@pytest.fixture(scope="module")
def subject() -> Subject:
    sizes = [3, 8, 24, 16, 5]
    layers = [[nn.Conv2d(a, b, 3, padding=1), nn.ReLU()] for a, b in itertools.pairwise(sizes)]
    traced = trace(nn.Sequential(*itertools.chain(*layers)), (torch.randn(2, 3, 8, 8),))
    coupling = couple(traced)
    return traced, coupling, score(traced, coupling, "random", seed=3)


def test_macs_by_hand(subject: Subject) -> None:
    traced, coupling, scores = subject
    found = priced(scores, "macs", CostModel(traced, coupling), coupling)
    for group, cost in (("0.weight", 3 + 24), ("2.weight", 8 + 16), ("4.weight", 24 + 5)):
        np.testing.assert_allclose(found.values[group], scores.values[group] / (64 * 9 * cost), rtol=1e-15)
    assert priced(scores, "channel", CostModel(traced, coupling), coupling) is scores


def test_padded_macs_by_hand(subject: Subject) -> None:
    """Widths 8, 24, 16 are padded to 16, 32, 16; less than 4 channels are not padded."""
    traced, coupling, scores = subject
    costs = CostModel(traced, coupling)
    found = priced(scores, "padded_macs", costs, coupling)
    saved = 64 * 9 * ((16 * 32 + 32 * 16) - (16 * 1 + 1 * 16)) / 23
    np.testing.assert_allclose(found.values["2.weight"], scores.values["2.weight"] / saved, rtol=1e-15)


def test_costs_as_given_and_groups_that_cost_nothing(subject: Subject) -> None:
    traced, coupling, scores = subject
    costs = CostModel(traced, coupling)
    given = {"0.weight": 0, "2.weight": 2.0, "4.weight": 4}
    found = priced(scores, given, costs, coupling)
    for group, cost in (("0.weight", 2), ("2.weight", 2), ("4.weight", 4)):
        assert np.array_equal(found.values[group], scores.values[group] / cost)

    def price(group: Group) -> float:
        return given[group.id]

    again = priced(scores, price, costs, coupling)
    assert all(np.array_equal(again.values[group], found.values[group]) for group in given)


def test_a_dear_group_gives_more(subject: Subject) -> None:
    traced, coupling, scores = subject
    plain = plan(traced, coupling, scores, {"macs": "60%"}, round_to=1)
    dear = plan(
        traced, coupling, scores, {"macs": "60%"}, round_to=1, per={"0.weight": 1, "2.weight": 9, "4.weight": 1}
    )
    assert dear.widths["2.weight"] < plain.widths["2.weight"]
    assert dear.widths["4.weight"] > plain.widths["4.weight"]
    assert (plain.per, dear.per) == ("channel", "given")
    assert plan(traced, coupling, scores, {"macs": "60%"}, round_to=1, per="macs").per == "macs"


@pytest.mark.parametrize(
    ("per", "match"),
    [
        ("latency", "per = 'latency': this needs a latency table of the network"),
        ("mac", "per = 'mac': want 'channel', 'macs', 'padded_macs', 'latency', a mapping or a function"),
        ({"0.weight": 1, "4.weight": 1}, "per: lacks group '2.weight'"),
        ({"0.weight": 1, "2.weight": -1, "4.weight": 1}, r"per\['2.weight'\] = -1: want the cost of one channel"),
        (lambda group: float("nan"), r"per\['0.weight'\] = nan"),
        (lambda group: "x", r"per\['0.weight'\] = 'x'"),
    ],
)
def test_what_is_no_cost(subject: Subject, per: object, match: str) -> None:
    traced, coupling, scores = subject
    with pytest.raises(PlanError, match=match):
        plan(traced, coupling, scores, per=per)  # type: ignore[arg-type]


def test_scores_below_zero_have_no_price(subject: Subject) -> None:
    traced, coupling, scores = subject
    below = Scores("own", {group: values - 0.5 for group, values in scores.values.items()})
    with pytest.raises(PlanError, match="numbers below 0: cost can only divide scores of at least 0"):
        plan(traced, coupling, below, per="macs")


@pytest.mark.parametrize(
    ("criterion", "allocation", "target", "want"),
    [
        *((criterion, "global", {"macs": "50%"}, "macs") for criterion in ("kl", "kl-exact", "kl-fast")),
        ("kl", "global", {"padded_macs": "50%", "params": "50%"}, "macs"),
        ("kl", "global", {"params": "50%"}, "channel"),
        ("kl", "uniform", {"macs": "50%"}, "channel"),
        ("kl", "knapsack", {"macs": "50%"}, "channel"),
        ("taylor", "global", {"macs": "50%"}, "channel"),
        ("klondike", "global", {"macs": "50%"}, "channel"),
    ],
)
def test_auto(criterion: str, allocation: str, target: dict[str, int | float | str], want: str) -> None:
    assert resolve_per("auto", criterion, allocation, target) == want
    assert resolve_per("latency", criterion, allocation, target) == "latency"


class Latency:
    """A millisecond, and one for every 8 channels of a group."""

    def __init__(self, group: Group) -> None:
        self.channels = group.channels

    def predict(self, alive: npt.NDArray[np.bool_]) -> float:
        return 1.0 + -(-int(alive[self.channels].sum()) // 8)


def test_latency_by_hand(subject: Subject) -> None:
    """The other groups take no time, and count like this one."""
    traced, coupling, scores = subject
    wide = next(group for group in coupling.groups if group.width == 24)
    costs = CostModel(traced, coupling, latency=Latency(wide))  # type: ignore[arg-type]
    found = priced(scores, "latency", costs, coupling)
    for group in coupling.groups:  # 24 channels take 3, one takes 1
        np.testing.assert_allclose(found.values[group.id], scores.values[group.id] * 23 / 2, rtol=1e-15)
    made = plan(traced, coupling, scores, {"latency_ms": "75%"}, round_to=1, per="latency", costs=costs)
    assert (made.per, made.before.latency_ms, made.after.latency_ms) == ("latency", 4.0, 3.0)
    assert made.widths[wide.id] == 16
