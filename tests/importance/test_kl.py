"""The KL criterion: by hand, against physically removed channels, and what it must leave alone."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from curlfx.coupling import Coupling, couple
from curlfx.errors import DataError, ModelError, PlanError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.progress import StepEvent
from tests.importance.kl_oracle import Pooled, traced_and_coupled
from tests.networks.fixtures import FIXTURES

CRITERIA_OF_KL = ("kl", "kl-exact", "kl-fast")


def divergence(p: float, q: float) -> float:
    """KL of two-class distributions given by the probability of the first class."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_by_hand_and_the_masked_network_comes_first() -> None:
    traced, coupling = traced_and_coupled(Pooled().double(), (1, 2, 2))
    levels = (0.5, 1.0, 1.5)
    images = torch.stack([torch.full((1, 2, 2), level, dtype=torch.float64) for level in levels])
    found = score(traced, coupling, "kl", [images]).values["conv.weight"]

    # z1 - z0 decides: intact a + 0.5 * 2a + 2a = 4a; without channel 0: 3a; without channel 1: a.
    want = [np.mean([divergence(sigmoid(gap * a), sigmoid(4 * a)) for a in levels]) for gap in (3, 1)]
    swapped = [np.mean([divergence(sigmoid(4 * a), sigmoid(gap * a)) for a in levels]) for gap in (3, 1)]
    assert found == pytest.approx(want, rel=1e-12)
    assert abs(np.array(want) - swapped).min() > 1e-3


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (4, 1, 1)])
def test_batches_are_weighed_by_their_images(sizes: tuple[int, ...]) -> None:
    traced, coupling = traced_and_coupled(FIXTURES["basic_identity"].build())
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = score(traced, coupling, "kl", images)
    parts = score(traced, coupling, "kl", [(part, torch.zeros(len(part))) for part in images.split(list(sizes))])
    assert parts.details["images"] == 6
    for group, values in whole.values.items():
        np.testing.assert_allclose(parts.values[group], values, rtol=1e-10, atol=1e-15)


def kl_of_removal(traced: TracedModel, coupling: Coupling, group: str, channel: int, images: Tensor) -> float:
    width = coupling.group(group).width
    slim, _ = run(traced, [Slim(coupling, {group: tuple(sorted(set(range(width)) - {channel}))})])
    with torch.no_grad():
        dense = traced.module.eval()(images).log_softmax(-1)
        left = slim.module.eval()(images).log_softmax(-1)
    return float((left.exp() * (left - dense)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_equals_the_divergence_of_the_slimmed_network(name: str) -> None:
    case = FIXTURES[name]
    if len(case.shapes) > 1 or not case.dynamic:
        pytest.skip("one image input only")
    traced = trace(case.build(), case.inputs())
    coupling = couple(traced)
    (images,) = case.inputs(batch=3, seed=5)
    with torch.no_grad():
        output = traced.module(images)
    if not isinstance(output, Tensor) or output.ndim != 2:
        pytest.skip("a classifier only")
    found = score(traced, coupling, "kl", [images]).values
    for group in coupling.groups:
        if group.blocks is None and group.width > 1:
            for channel in (0, group.width - 1):
                want = kl_of_removal(traced, coupling, group.id, channel, images)
                assert found[group.id][channel] == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_nothing_changes() -> None:
    traced, coupling = traced_and_coupled(FIXTURES["basic_identity"].build())
    traced.module.train()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in traced.module.state_dict(keep_vars=True).items()}
    code, mode = traced.module.code, traced.module.training
    for criterion in CRITERIA_OF_KL:
        score(traced, coupling, criterion, [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(2)])
    after = traced.module.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (identity, value) in before.items():
        assert id(after[name]) == identity
        assert torch.equal(after[name], value)
        assert after[name].grad is None
    assert (traced.module.code, traced.module.training) == (code, mode)
    assert torch.is_grad_enabled()


def test_draws_no_random_numbers() -> None:
    traced, coupling = traced_and_coupled(Pooled(), (1, 2, 2))
    images = torch.rand(2, 1, 2, 2)
    before = torch.random.get_rng_state()
    score(traced, coupling, "kl", [images])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dead_channels_score_nothing_and_nothing_scores_below_zero() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(1), nn.Linear(64, 3)
    )
    randomise(net)
    with torch.no_grad():
        net[1].weight[2] = 0.0
        net[1].bias[2] = 0.0
    traced, coupling = traced_and_coupled(net)
    values = score(traced, coupling, "kl", [torch.randn(4, 3, 8, 8)]).values
    assert values["0.weight"][2] == 0
    assert min(scores.min() for scores in values.values()) >= 0
    assert np.delete(values["0.weight"], 2).min() > 1e-7


def test_tells_of_every_step_with_the_time_left() -> None:
    class Listener:
        def __init__(self) -> None:
            self.events: list[StepEvent] = []

        def on_step(self, event: StepEvent) -> None:
            self.events.append(event)

    traced, coupling = traced_and_coupled(FIXTURES["basic_identity"].build())
    images = [torch.randn(3, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    for data in (images, iter(images)):
        listener = Listener()
        score(traced, coupling, "kl-exact", data, progress=listener)
        steps = [event.step for event in listener.events]
        total = listener.events[0].total
        assert total < coupling.total  # forward passes: most channels cost a part of one
        assert steps == sorted(set(steps))
        assert (len(steps) > 3, steps[-1]) == (True, total)
        assert all(event.stage == "score" and event.total == total for event in listener.events)
        assert all(event.seconds_left is not None and event.seconds_left >= 0 for event in listener.events)


class Segmenter(nn.Module):
    """Dense prediction in a dictionary, with another head first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 4, 1)
        self.other = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.stem(x))
        return {"aux": self.other(y), "out": self.head(y)}


def test_dense_predictions_count_as_the_mean_over_pixels() -> None:
    net = Segmenter().double()
    traced, coupling = traced_and_coupled(net)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = score(traced, coupling, "kl", [images]).values["stem.weight"]
    closed = copy.deepcopy(net)
    with torch.no_grad():
        closed.head.weight[:, 3] = 0
        dense, masked = net(images)["out"].log_softmax(1), closed(images)["out"].log_softmax(1)
    want = (masked.exp() * (masked - dense)).sum(1).mean()
    assert found[3] == pytest.approx(float(want), rel=1e-10)


def test_ignores_a_surrounding_autocast() -> None:
    traced, coupling = traced_and_coupled(FIXTURES["basic_identity"].build().float())
    images = [torch.randn(4, 3, 8, 8)]
    plain = score(traced, coupling, "kl", images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = score(traced, coupling, "kl", images)
    for group, values in plain.values.items():
        assert np.array_equal(mixed.values[group], values)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, "none was given"),
        ([], "no batch in it"),
        ([["text"]], "batch 0 is a list"),
        ([torch.rand(2, 5, 8, 8)], r"images \(2, 5, 8, 8\) of torch.float32 do not fit"),
        ([torch.rand(2, 1, 2, 2), torch.full((1, 1, 2, 2), math.nan)], "batch 1 has NaN"),
    ],
)
def test_refuses_data_that_it_cannot_look_at(data: object, match: str) -> None:
    traced, coupling = traced_and_coupled(Pooled(), (1, 2, 2))
    with pytest.raises(DataError, match=match):
        score(traced, coupling, "kl", data)  # type: ignore[arg-type]


def test_refuses_a_network_without_classes() -> None:
    traced, coupling = traced_and_coupled(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 6), nn.Flatten())
    )
    with pytest.raises(ModelError, match=r"the output is \(2, 1\) for 2 images"):
        score(traced, coupling, "kl", [torch.rand(2, 3, 8, 8)])


def test_names_the_group_of_a_score_that_is_no_number() -> None:
    with pytest.raises(PlanError, match=r"scores\['b'\]\[1\] = nan \(1 of 2 channels\)"):
        Scores("kl", {"a": np.ones(3), "b": np.array([1.0, math.nan])})


def test_a_network_with_nothing_free_has_no_scores() -> None:
    traced, coupling = traced_and_coupled(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    assert not coupling.groups
    assert dict(score(traced, coupling, "kl", data=torch.randn(2, 3, 8, 8)).values) == {}


class MovingMean(nn.Module):
    """Writes into a buffer at every call, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        self.mean.mul_(0.9).add_(y.mean(0) * 0.1)
        return self.fc(torch.relu(y - self.mean))


def test_buffers_that_a_network_writes_into_stay() -> None:
    traced, coupling = traced_and_coupled(MovingMean())
    before = copy.deepcopy(traced.module.state_dict())
    assert score(traced, coupling, "kl", data=torch.randn(4, 3, 8, 8)).values
    assert all(torch.equal(tensor, before[name]) for name, tensor in traced.module.state_dict().items())
