"""Fast KL scores, what they are compared with, and how both kinds come onto one scale."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from curlfx.coupling import Group
from curlfx.errors import ConfigError, ModelError
from curlfx.importance import blend, fast, score
from curlfx.importance.divergence import DIVERGENCES, Divergence
from curlfx.importance.fast import Fast
from curlfx.importance.gated import GatedNetwork
from curlfx.passes.gate import GATES, Gate
from tests.importance.kl_oracle import assert_same, naive, traced_and_coupled
from tests.networks.fixtures import FIXTURES

KL = importlib.import_module("curlfx.importance.kl")  # the package has a function of that name


def head(classes: int, *last: nn.Module) -> nn.Module:
    """Logits that depend linearly on every gate."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    return nn.Sequential(*net, *last).double()


def some_images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_is_exact_where_logits_are_linear_in_the_gates_and_classes_are_few(classes: int) -> None:
    traced, coupling = traced_and_coupled(head(classes))
    images = some_images()
    assert_same(score(traced, coupling, "kl-fast", images).values, naive(traced, coupling, images))


def test_all_classes_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, coupling = traced_and_coupled(head(9))
    images = some_images()
    monkeypatch.setattr(fast, "TOP", 9)
    assert_same(score(traced, coupling, "kl-fast", images).values, naive(traced, coupling, images))


def test_what_moves_inside_the_rest_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, coupling = traced_and_coupled(head(12))
    images = some_images()
    want = naive(traced, coupling, images)["0.weight"]
    monkeypatch.setattr(fast, "INSIDE_REST", 400)
    estimated = score(traced, coupling, "kl-fast", images).values["0.weight"]
    monkeypatch.setattr(fast, "REST_THAT_COUNTS", 1.1)
    merged = score(traced, coupling, "kl-fast", images).values["0.weight"]
    assert (merged < 0.9 * want).all()  # to merge classes loses divergence, never adds any
    np.testing.assert_allclose(estimated, want, rtol=0.06)


@pytest.mark.parametrize("name", ["option_a", "attention_fused", "transformer", "convnext_block", "squeeze_excitation"])
def test_pulls_are_the_jacobian_of_every_image(name: str) -> None:
    traced, coupling = traced_and_coupled(FIXTURES[name].build())
    images = FIXTURES[name].inputs(batch=3, seed=5)[0]
    averaged = any(group.statistics_change for group in coupling.groups)
    module = Gate(coupling, statistics="kept" if averaged else "all")(traced).module.eval()
    gates = module.get_buffer(GATES)
    network = GatedNetwork(traced, coupling)
    rows = network.ones().repeat(3, 1).requires_grad_()
    logits = Fast(network, 0, 3)._logits(rows, images)
    step = 1e-5
    for label in range(logits.shape[1]):
        (found,) = torch.autograd.grad(logits[:, label].sum(), rows, retain_graph=True)
        for channel in (1, coupling.total // 2, coupling.total):
            sides = []
            for side in (step, -step):
                gates[channel] = 1 + side
                with torch.no_grad():
                    sides.append(module(images)[:, label])
                gates[channel] = 1
            want = (sides[0] - sides[1]) / (2 * step)
            torch.testing.assert_close(found[:, channel], want, rtol=1e-6, atol=1e-9)


def test_one_image_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, coupling = traced_and_coupled(FIXTURES["option_a"].build())
    images = FIXTURES["option_a"].inputs(batch=5)[0]
    want = score(traced, coupling, "kl-fast", images).values
    monkeypatch.setattr(fast, "vectorised", lambda *_: None)
    assert_same(score(traced, coupling, "kl-fast", images).values, want)


@pytest.mark.parametrize("name", ["option_a", "basic_downsample", "dense_block", "transformer"])
def test_ranks_like_the_exact_scores(name: str) -> None:
    traced, coupling = traced_and_coupled(FIXTURES[name].build())
    images = FIXTURES[name].inputs(batch=8, seed=2)[0]
    one, other = (
        np.concatenate([*score(traced, coupling, criterion, images).values.values()])
        for criterion in ("kl-exact", "kl-fast")
    )
    assert stats.spearmanr(one, other).statistic > 0.85


def test_the_cost_does_not_grow_with_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    own = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(1) or own(*args, **options))
    for width in (4, 40):
        net = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, 5)).double()
        score(*traced_and_coupled(net), "kl-fast", some_images())
    assert len(calls) == 2 * calls[: len(calls) // 2].count(1)
    assert len(calls) <= 2 * (fast.TOP + fast.MOST_PROJECTIONS)


def test_refuses_what_has_no_derivative_for_an_image_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 3, 6), nn.Flatten()
    )
    traced, coupling = traced_and_coupled(net.double())
    with pytest.raises(ModelError, match="an image gives other logits alone"):
        score(traced, coupling, "kl-fast", some_images())
    assert_same(score(traced, coupling, "kl", some_images()).values, naive(traced, coupling, some_images()))


def by_hand(name: str, masked: Tensor, intact: Tensor) -> float:
    if name == "bernoulli":
        return float(
            sum(
                p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
                for p, q in zip(masked.sigmoid().flatten().tolist(), intact.sigmoid().flatten().tolist(), strict=True)
            )
            / len(intact)
        )
    return float((1 - torch.cosine_similarity(masked, intact)).mean())


@pytest.mark.parametrize(("name", "width"), [("bernoulli", 1), ("bernoulli", 4), ("embedding", 5)])
def test_other_heads_by_hand(name: str, width: int) -> None:
    net = head(width)
    traced, coupling = traced_and_coupled(net)
    images = some_images()
    found = score(traced, coupling, "kl-exact", images, divergence=name).values["0.weight"]
    quick = score(traced, coupling, "kl-fast", images, divergence=name).values["0.weight"]
    with torch.no_grad():
        intact, kept = net(images), net[4].weight.clone()
        for channel in range(6):
            net[4].weight[:, channel] = 0
            assert found[channel] == pytest.approx(by_hand(name, net(images), intact), rel=1e-9)
            net[4].weight.copy_(kept)
    if name == "bernoulli":
        np.testing.assert_allclose(quick, found, rtol=1e-9)


@pytest.mark.parametrize(("last", "kind"), [(nn.Sigmoid(), "bernoulli"), (nn.Softmax(1), "softmax")])
def test_auto_looks_behind_the_last_op(last: nn.Module, kind: str) -> None:
    images = some_images()
    with_head, without = (traced_and_coupled(net) for net in (head(4, last), head(4)))
    found = score(*with_head, "kl-exact", images).values
    assert_same(found, score(*without, "kl-exact", images, divergence=kind).values, 1e-15)
    other = {"bernoulli": "softmax", "softmax": "bernoulli"}[kind]
    differs = score(*with_head, "kl-exact", images, divergence=other).values
    assert abs(differs["0.weight"] - found["0.weight"]).max() > 1e-6


def test_an_unknown_divergence() -> None:
    with pytest.raises(ConfigError, match=r"divergence 'softmx': want one of auto, .*; did you mean 'softmax'"):
        score(*traced_and_coupled(head(3)), "kl", some_images(), divergence="softmx")
    with pytest.raises(ModelError, match=r"at least 2 classes for divergence 'softmax'"):
        score(*traced_and_coupled(head(1)), "kl", some_images())


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 2)])
def test_directions_have_the_hessian_as_their_covariance(divergence: Divergence, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    intact, moved = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    step = 1e-4
    want = divergence.sums((intact + step * moved)[None], intact) / step**2
    squares = []
    for _ in range(6000):
        signs = 2.0 * torch.randint(0, 2, shape, generator=generator).double() - 1
        pulled = (divergence.direction(intact, signs) * moved).flatten(1).sum(1)
        squares.append(0.5 * pulled.square().sum())
    assert float(torch.stack(squares).mean()) == pytest.approx(float(want), rel=0.05)


def groups_of(*widths: int) -> list[Group]:
    ends = np.cumsum((0, *widths))
    return [
        Group(str(place), width, (), None, False, np.arange(start + 1, start + width + 1))
        for place, (start, width) in enumerate(zip(ends, widths, strict=False))
    ]


def test_calibration_brings_groups_to_the_exact_scale_and_keeps_their_order() -> None:
    groups = groups_of(50, 50)
    true = np.concatenate([[0], np.random.default_rng(0).lognormal(size=100)])
    quick = true.copy()
    quick[1:51] *= 0.2
    costs = np.ones(101)
    spread = blend.anchors(groups, quick, costs, 100)
    assert [np.isin(group.channels, spread).sum() for group in groups] == [blend.PER_GROUP] * 2
    exact = np.zeros(101)
    exact[spread] = true[spread]
    found = blend.calibrated(groups, quick, exact, spread)
    assert np.array_equal(found[spread], true[spread])
    others = np.setdiff1d(np.arange(1, 101), spread)
    assert abs(np.log(found[others] / true[others])).max() < 0.5 * math.log(5)
    first = np.intersect1d(others, groups[0].channels)
    assert np.array_equal(np.argsort(found[first]), np.argsort(true[first]))
    assert stats.spearmanr(found, true).statistic > stats.spearmanr(quick, true).statistic + 0.1


def test_the_band_lies_in_the_middle_and_keeps_the_budget() -> None:
    values = np.arange(101.0)
    known = np.array([50, 51])
    assert blend.band(values, known, np.ones(101), 1000).tolist() == [*range(36, 50), *range(52, 66)]
    assert blend.band(values, known, np.ones(101), 4).tolist() == [48, 49, 52, 53]


def test_the_default_mixes_when_exact_scores_cost_much(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, coupling = traced_and_coupled(FIXTURES["option_a"].build())
    images = FIXTURES["option_a"].inputs(batch=4)[0]
    want = naive(traced, coupling, images)
    assert_same(score(traced, coupling, "kl", images).values, want)
    monkeypatch.setattr(KL, "AFFORDABLE", 6)
    mixed = score(traced, coupling, "kl", images)
    assert 4 <= mixed.details["exact_channels"] < coupling.total
    assert -1000 <= mixed.details["spearman_permille"] <= 1000
    same = sum(
        math.isclose(a, b, rel_tol=1e-9)
        for group in want
        for a, b in zip(mixed.values[group], want[group], strict=True)
    )
    assert mixed.details["exact_channels"] <= same < coupling.total
