"""Magnitude, random, and the values that criteria give."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curlfx.coupling import Coupling, couple
from curlfx.errors import ConfigError, PlanError, WeightsError
from curlfx.graph import TracedModel, trace
from curlfx.importance import CRITERIA, Request, Scores, check_criterion, score
from tests.networks.fixtures import FIXTURES


def traced_and_coupled(module: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[TracedModel, Coupling]:
    traced = trace(module, (torch.randn(2, *shape, dtype=next(module.parameters()).dtype),))
    return traced, couple(traced)


def relative(squares: Tensor) -> np.ndarray:
    norms = squares.double().sqrt()
    return (norms / norms.mean()).detach().numpy()


def test_magnitude_is_the_norm_of_all_that_goes_with_a_channel() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Flatten(1), nn.Linear(4 * 64, 5),
    )  # fmt: skip
    nn.init.uniform_(net[1].weight)
    traced, coupling = traced_and_coupled(net)
    found = score(traced, coupling, "magnitude").values
    first, norm, deep, last, head = (net[place].weight.double().square() for place in (0, 1, 3, 5, 8))
    want = first.sum((1, 2, 3)) + norm + deep.sum((1, 2, 3)) + last.sum((0, 2, 3))
    np.testing.assert_allclose(found["0.weight"], relative(want), rtol=1e-12)
    want = last.sum((1, 2, 3)) + head.reshape(5, 4, 64).sum((0, 2))
    np.testing.assert_allclose(found["5.weight"], relative(want), rtol=1e-12)


class SquareLoop(nn.Module):
    """One residual group whose convolution has the group on both axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.body = nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(torch.relu(x))).mean((2, 3)))


def test_an_element_counts_once_for_a_channel_on_both_of_its_axes() -> None:
    net = SquareLoop()
    traced, coupling = traced_and_coupled(net)
    body = net.body.weight.double().square()[:, :, 0, 0]
    want = net.stem.weight.double().square().sum((1, 2, 3)) + net.head.weight.double().square().sum(0)
    want = want + body.sum(0) + body.sum(1) - body.diagonal()
    np.testing.assert_allclose(score(traced, coupling, "magnitude").values["stem.weight"], relative(want), rtol=1e-12)


def test_magnitude_of_a_group_of_zeros_is_zero() -> None:
    net = SquareLoop()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert not score(*traced_and_coupled(net), "magnitude").values["stem.weight"].any()


def test_magnitude_names_a_parameter_that_is_not_finite() -> None:
    net = SquareLoop()
    with torch.no_grad():
        net.body.weight[1, 2] = math.inf
    with pytest.raises(WeightsError, match=r"parameter 'body.weight' has NaN or infinite values"):
        score(*traced_and_coupled(net), "magnitude")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_gets_a_score_for_every_channel(name: str) -> None:
    case = FIXTURES[name]
    traced = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = couple(traced)
    for criterion in ("magnitude", "random"):
        found = score(traced, coupling, criterion)
        found.check(coupling)
        assert all((values >= 0).all() for values in found.values.values())


def test_random_is_a_function_of_the_seed() -> None:
    traced, coupling = traced_and_coupled(SquareLoop())
    one, again, other = (score(traced, coupling, "random", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.values["stem.weight"], again.values["stem.weight"])
    assert not np.array_equal(one.values["stem.weight"], other.values["stem.weight"])
    assert one.details == {"seed": 1}


def test_json_brings_back_every_bit() -> None:
    values = {"a": np.array([0.1, 1e-300, 3.0, 1 / 3]), "b": np.zeros(0)}
    scores = Scores("kl", values, {"seed": 3, "images": 256})
    again = Scores.from_json(scores.to_json())
    assert (again.criterion, again.details) == ("kl", {"seed": 3, "images": 256})
    assert list(again.values) == ["a", "b"]
    assert all(np.array_equal(again.values[group], numbers) for group, numbers in values.items())
    with pytest.raises(ValueError, match="read-only"):
        again.values["a"][0] = 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON"),
        ("[]", "want an object with version 1"),
        ('{"version": 2}', "version 1"),
        ('{"version": 1, "criterion": 3}', "criterion = 3"),
        ('{"version": 1, "criterion": "kl", "details": {"seed": "x"}, "values": {}}', "details"),
        ('{"version": 1, "criterion": "kl", "details": {}, "values": {"a": ["x"]}}', r"values\['a'\]"),
        ('{"version": 1, "criterion": "kl", "details": {}, "values": {"a": [NaN]}}', r"scores\['a'\]\[0\] = nan"),
    ],
)
def test_json_names_what_is_wrong(text: str, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        Scores.from_json(text)


def test_scores_of_another_network_are_refused() -> None:
    _, coupling = traced_and_coupled(SquareLoop())
    for values, match in (
        ({}, "lack group 'stem.weight'"),
        ({"stem.weight": np.ones(3)}, "found 3 numbers, want 4"),
        ({"stem.weight": np.ones(4), "x": np.ones(1)}, "name group 'x'"),
    ):
        with pytest.raises(PlanError, match=match):
            Scores("random", values).check(coupling)


def test_a_criterion_of_ones_own_and_a_misspelt_one() -> None:
    traced, coupling = traced_and_coupled(SquareLoop())

    def first_best(request: Request) -> dict[str, np.ndarray]:
        return {group.id: -np.arange(group.width, dtype=float) for group in request.coupling.groups}

    found = score(traced, coupling, "first-best", criteria={**CRITERIA, "first-best": first_best})
    assert found.values["stem.weight"].tolist() == [0, -1, -2, -3]
    with pytest.raises(ConfigError, match=r"importance = magnitud: want one of kl, .*; did you mean 'magnitude'\?"):
        score(traced, coupling, "magnitud")


def test_a_divergence_that_nothing_looks_at() -> None:
    with pytest.raises(ConfigError, match="divergence = bernoulli: importance = magnitude compares no predictions"):
        check_criterion("magnitude", "bernoulli")
    check_criterion("kl-fast", "bernoulli")
    check_criterion("mine", "bernoulli", {"mine": CRITERIA["kl"]})
