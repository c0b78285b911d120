"""Over-parameterised training: the slim network keeps its shape, learns, repeats, resumes, and refuses what is not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curlfx
from curlfx.errors import ConfigError
from curlfx.graph import TracedModel, show, trace
from curlfx.passes.expand_linear import ExpandLinear
from curlfx.passes.functionalise import Functionalise
from curlfx.passes.pipeline import run
from curlfx.recovery import Overparam, Recipe, TrainSettings, evaluate, fit, fit_expanded, recover
from curlfx.recovery.checkpoint import Checkpoint
from curlfx.recovery.overparam import as_traced
from curlfx.recovery.recipes import RECIPES, find_recipe
from curlfx.recovery.similarity import similarities, similarity_loss
from curlfx.recovery.taps import per_image, tapped
from tests.killed import Killed
from tests.recovery.test_fit import Clouds

TRAIN = TrainSettings(epochs=3, lr=0.02, batch_size=16, distillation=0.0, amp="off")
SIZE = (2, 3, 8, 8)


class Network(nn.Module):
    """Three convolutions, the last of them depthwise, batch normalisation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.deep = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.bn(self.stem(x)))
        return {"logits": self.head(torch.relu(self.deep(torch.relu(self.inner(x)))).mean((2, 3)))}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = Network()
    fit(network, Clouds(8), replace(TRAIN, lr=0.1))
    return network


@pytest.fixture(scope="module")
def dense(model: nn.Module) -> TracedModel:
    return trace(model, torch.randn(SIZE))


@pytest.fixture(scope="module")
def narrow(dense: TracedModel) -> TracedModel:
    coupling = curlfx.couple(dense)
    scores = curlfx.score(dense, coupling, "magnitude")
    return curlfx.slim(dense, curlfx.plan(dense, coupling, scores, {"macs": "40%"}, round_to=1))


@pytest.fixture
def slim(narrow: TracedModel) -> TracedModel:
    return copy.deepcopy(narrow)


def state(network: TracedModel) -> dict[str, Tensor]:
    return dict(network.module.state_dict())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("similarity", [0.0, 300.0])
def test_learns_in_the_shape_of_the_slim_network(dense: TracedModel, slim: TracedModel, similarity: float) -> None:
    text, before, untouched = show(slim), evaluate(slim.module, Clouds(2)), copy.deepcopy(state(dense))
    shapes = {name: tensor.shape for name, tensor in state(slim).items()}
    settings = Overparam(replace(TRAIN, epochs=4), similarity=similarity)
    found = fit_expanded(slim, Clouds(8), settings, teacher=dense, validation=Clouds(2))
    after = evaluate(slim.module, Clouds(2))
    assert after > max(0.8, before)
    assert found.accuracy == after
    assert show(slim) == text
    assert {name: tensor.shape for name, tensor in state(slim).items()} == shapes
    assert_same(state(dense), untouched)
    assert all(parameter.grad is None for parameter in dense.module.parameters())


def test_with_resting_outer_factors_it_is_the_plain_training(dense: TracedModel, slim: TracedModel) -> None:
    """Momentum and weight decay included: M moves as the weight does, turned by A and B."""
    plain = copy.deepcopy(slim)
    train = replace(TRAIN, weight_decay=0.01, distillation=0.5)
    fit(plain.module, Clouds(), train, teacher=dense.module)
    settings = Overparam(train, similarity=0, frozen_epochs=train.epochs)
    fit_expanded(slim, Clouds(), settings, teacher=dense)
    for name, tensor in state(slim).items():
        torch.testing.assert_close(tensor, state(plain)[name], rtol=1e-3, atol=1e-4, msg=name)


def test_both_ways_to_compute_train_alike(dense: TracedModel, slim: TracedModel) -> None:
    other = copy.deepcopy(slim)
    for network, compute in ((slim, "weights"), (other, "features")):
        settings = Overparam(replace(TRAIN, epochs=1), compute=compute)  # type: ignore[arg-type]
        fit_expanded(network, Clouds(), settings, teacher=dense)
    for name, tensor in state(slim).items():
        torch.testing.assert_close(tensor, state(other)[name], rtol=1e-3, atol=1e-4, msg=name)


def test_similarities_weigh_by_layers_and_images_unless_told_otherwise() -> None:
    assert Overparam().weight(55, 128) == pytest.approx(3000, rel=0.07)
    assert Overparam(similarity=5.0).weight(55, 128) == 5
    assert [Overparam(similarity=weight).compares for weight in (None, 1.0, 0.0)] == [True, True, False]


def test_a_weight_by_layers_and_images_is_that_number(dense: TracedModel, slim: TracedModel) -> None:
    """Three layers, batches of 16."""
    other, loader = copy.deepcopy(slim), Clouds()
    for network, similarity in ((slim, None), (other, 0.4 * 3 * 16)):
        fit_expanded(network, loader, Overparam(replace(TRAIN, epochs=2), similarity=similarity), teacher=dense)
    assert_same(state(slim), state(other))


def test_similarity_draws_features_to_those_of_the_dense_network(dense: TracedModel, slim: TracedModel) -> None:
    @torch.no_grad()
    def distance(network: TracedModel) -> float:
        names = ["conv2d", "conv2d_1", "conv2d_2"]
        assert all(per_image(network, name) for name in names)
        images = next(Clouds().epoch(50))[0]
        ours, theirs = (tapped(one, names).eval()(images)[1] for one in (network, dense))
        return float(similarity_loss([similarities(t) for t in ours], [similarities(t) for t in theirs]))

    without = copy.deepcopy(slim)
    for network, similarity in ((slim, 3000.0), (without, 0.0)):
        settings = Overparam(replace(TRAIN, clip_gradient=1.0), similarity=similarity)
        fit_expanded(network, Clouds(8), settings, teacher=dense)
    assert distance(slim) < 0.7 * distance(without)


def test_taps_return_values_from_within(dense: TracedModel) -> None:
    images = torch.randn(5, *SIZE[1:])
    output, (value,) = tapped(dense, ["conv2d_1"]).eval()(images)
    assert torch.equal(output["logits"], dense.module(images)["logits"])
    module = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    module.load_state_dict({name: state(dense)[f"inner.{name}"] for name in ("weight", "bias")})
    seen, (inputs,) = tapped(dense, ["relu"]).eval()(images)
    torch.testing.assert_close(module(inputs), value)
    assert torch.equal(seen["logits"], output["logits"])
    assert evaluate(tapped(dense, ["conv2d"]), Clouds(2)) == evaluate(dense.module, Clouds(2))
    with pytest.raises(KeyError):
        tapped(dense, ["conv2d_9"])


class Chain(nn.Module):
    """No normalisation: activations write into the outputs of layers, as they are and through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.first(x), inplace=True)
        return self.head(nn.functional.relu(self.second(x).flatten(1), inplace=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("compute", ["weights", "features", None])
def test_taps_return_values_from_before_activations_in_place(training: bool, compute: Any) -> None:
    torch.manual_seed(0)
    traced = trace(Chain(), torch.randn(SIZE))
    network = traced if compute is None else ExpandLinear(compute=compute)(traced)
    images, chain = torch.randn(5, *SIZE[1:]), Chain()
    chain.load_state_dict(state(traced))
    output, (first, second) = tapped(network, ["conv2d", "conv2d_1"]).train(training)(images)
    torch.testing.assert_close(first, chain.first(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, chain.second(torch.relu(first)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, chain(images), rtol=1e-4, atol=1e-5)
    assert bool((first < 0).any() & (second < 0).any())
    output.sum().backward()


def test_nothing_is_copied_where_no_tap_is_written_into(dense: TracedModel) -> None:
    assert "clone" not in tapped(dense, ["conv2d", "conv2d_1"]).code
    normalised = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten())
    assert "clone" not in tapped(trace(normalised, torch.randn(SIZE)), ["conv2d"]).code


def test_activations_in_place_are_trained_as_others(dense: TracedModel) -> None:
    """Bit by bit what the network with new tensors in their place becomes."""
    torch.manual_seed(0)
    one = trace(Chain(), torch.randn(SIZE))
    other = run(one, [Functionalise()])[0]
    teacher = trace(Chain(), torch.randn(SIZE))
    assert "relu_" in show(one)
    for network in (one, other):
        fit_expanded(network, Clouds(), Overparam(replace(TRAIN, epochs=1)), teacher=teacher)
    assert_same(state(one), state(other))


def weights(path: Path, letter: str) -> list[Tensor]:
    return [tensor for name, tensor in Checkpoint.load(path).model.items() if name.endswith(f"weight_{letter}")]


def test_weight_decay_on_the_middle_factor(dense: TracedModel, narrow: TracedModel, tmp_path: Path) -> None:
    norms: dict[str, dict[str, float]] = {}
    train = replace(TRAIN, epochs=1, weight_decay=5.0, warmup_epochs=0.0)
    for decay in ("middle", "all"):
        path = tmp_path / f"{decay}.pt"
        settings = Overparam(train, similarity=0, decay=decay)  # type: ignore[arg-type]
        fit_expanded(copy.deepcopy(narrow), Clouds(), settings, teacher=dense, checkpoint=path)
        norms[decay] = {letter: float(sum(t.square().sum() for t in weights(path, letter))) for letter in "AMB"}
    for letter in "AB":
        assert norms["all"][letter] < 0.8 * norms["middle"][letter]


def test_outer_factors_rest_at_first(dense: TracedModel, narrow: TracedModel, tmp_path: Path) -> None:
    moved = {}
    for epochs in (1, 2):
        path = tmp_path / f"{epochs}.pt"
        settings = Overparam(replace(TRAIN, epochs=epochs), frozen_epochs=1)
        fit_expanded(copy.deepcopy(narrow), Clouds(), settings, teacher=dense, checkpoint=path)
        eye = [(a.flatten(1).mT @ a.flatten(1)) for a in weights(path, "A")[:2]]
        moved[epochs] = max(float((one - torch.eye(len(one))).abs().max()) for one in eye)
    assert moved[1] < 1e-5 < 1e-4 < moved[2]


@pytest.mark.parametrize(("epochs", "rest"), [(1, 0), (2, 1)])
def test_outer_factors_rest_in_the_first_of_several_epochs_unless_told_otherwise(
    dense: TracedModel, narrow: TracedModel, epochs: int, rest: int
) -> None:
    asked = Overparam(replace(TRAIN, epochs=epochs))
    assert asked.resting_epochs == rest
    found = []
    for settings in (asked, replace(asked, frozen_epochs=rest), replace(asked, frozen_epochs=1 - rest)):
        found.append(copy.deepcopy(narrow))
        fit_expanded(found[-1], Clouds(), settings, teacher=dense)
    one, same, other = map(state, found)
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_merging_now_and_then_keeps_the_function(dense: TracedModel, slim: TracedModel) -> None:
    before = copy.deepcopy(slim)
    settings = Overparam(replace(TRAIN, lr=0.0, nesterov=False), similarity=0, merge_every=1)
    fit_expanded(slim, Clouds(), settings, teacher=dense)
    for name, parameter in slim.module.named_parameters():
        torch.testing.assert_close(parameter, before.module.get_parameter(name), rtol=1e-5, atol=1e-6, msg=name)


class Murderer:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_step(self, event: Any) -> None:
        if event.epoch == self.epoch:
            raise Killed


@pytest.mark.parametrize(
    "settings",
    [Overparam(TRAIN), Overparam(TRAIN, frozen_epochs=2, merge_every=1), Overparam(replace(TRAIN, ema_decay=0.9))],
)
def test_resumed_to_the_same_bits(dense: TracedModel, narrow: TracedModel, tmp_path: Path, settings: Overparam) -> None:
    path, one, other, third = tmp_path / "o.pt", *(copy.deepcopy(narrow) for _ in range(3))
    fit_expanded(one, Clouds(), settings, teacher=dense)
    with pytest.raises(Killed):
        fit_expanded(other, Clouds(), settings, teacher=dense, checkpoint=path, progress=Murderer(3))
    assert_same(state(other), state(narrow))
    found = fit_expanded(third, Clouds(), settings, teacher=dense, checkpoint=path, resume=True)
    assert found.resumed_after == 2
    assert_same(state(third), state(one))
    with pytest.raises(ConfigError, match=r"o\.pt was made with similarity=None, not 1\.0"):
        fit_expanded(narrow, Clouds(), replace(settings, similarity=1.0), teacher=dense, checkpoint=path, resume=True)


def test_recover_takes_graphs_modules_and_narrowed_models(
    model: nn.Module, dense: TracedModel, slim: TracedModel
) -> None:
    recipe = Recipe(TrainSettings(epochs=1, batch_size=16), overparam=Overparam(replace(TRAIN, epochs=1)))
    module, own = copy.deepcopy(slim).module, copy.deepcopy(model)
    coupling = curlfx.couple(dense)
    plan = curlfx.plan(dense, coupling, curlfx.score(dense, coupling, "magnitude"), {"macs": "40%"}, round_to=1)
    curlfx.slim_(own, plan, traced=dense)
    results = [recover(slim, Clouds(), recipe, teacher=dense, validation=Clouds(2))]
    results += [recover(student, Clouds(), recipe, teacher=model) for student in (module, own)]
    assert results[0].accuracy == evaluate(slim.module, Clouds(2))
    assert all(result.expanded is not None and len(result.expanded.history) == 1 for result in results)
    assert_same(dict(module.state_dict()), state(slim))
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(tensor, state(slim)[name], rtol=1e-4, atol=1e-5)


def test_examples_come_to_where_the_network_is(slim: TracedModel) -> None:
    module = slim.module.to("meta")
    assert [one.device.type for one in as_traced(module, Clouds()).example_inputs] == ["meta"]


def test_recipes_by_name() -> None:
    alone, both = find_recipe("overparam"), find_recipe(["overparam", "curl"])
    assert (alone.overparam.train.epochs, alone.train.epochs, alone.refine.epochs) == (8, 0, 0)
    assert replace(both, overparam=RECIPES["curl"].overparam) == RECIPES["curl"]
    assert both.overparam == alone.overparam
    assert both.on(seed=3, device="cpu").overparam.train.seed == 3
    for wrong in ("lop", [], ["curl", "overparam"], ["overparam", "overparam"], ["overparam", "curl", "curl"]):
        with pytest.raises(ConfigError, match="want one of distillation, curl, curl-large, overparam"):
            find_recipe(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0}, "rate = 0: want 1 or more"),
        ({"similarity": -1.0}, "similarity = -1.0: want 0 or more"),
        ({"layers": "conv"}, r"layers = 'conv': want a tuple of names, like \('conv',\)"),
        ({"init": "zero"}, "init = 'zero': want one of semi_orthogonal"),
        ({"decay": "none"}, "decay = 'none': want one of middle, all"),
        ({"train": replace(TRAIN, batch_size=1)}, "want batch_size of 2 or more, or similarity=0"),
        ({"merge_every": 2, "train": replace(TRAIN, ema_decay=0.9)}, "leave out ema_decay"),
    ],
)
def test_settings_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Overparam(**{"train": TRAIN, **changes})


def test_refuses_what_cannot_be(dense: TracedModel, slim: TracedModel) -> None:
    with pytest.raises(ConfigError, match="similarities need the dense network; give a teacher, or similarity=0"):
        fit_expanded(slim, Clouds(), Overparam(TRAIN))
    other = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3)), torch.randn(SIZE))
    with pytest.raises(ConfigError, match=r"the teacher has no layer 'conv2d' with weight 'stem\.weight'"):
        fit_expanded(slim, Clouds(), Overparam(TRAIN), teacher=other)
    head = trace(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), torch.randn(SIZE))
    with pytest.raises(ConfigError, match="no convolution or linear layer but the last"):
        fit_expanded(head, Clouds(), Overparam(TRAIN), teacher=head)
