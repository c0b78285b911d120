"""Exact KL scores: the shortcut must be the definition, whatever the network, and a killed run must go on."""

import copy
import importlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curlfx.coupling import couple
from curlfx.graph import trace
from curlfx.importance import exact, partial, score, together
from curlfx.importance.gated import GatedNetwork
from curlfx.importance.section import Forward
from tests.importance.kl_oracle import Killer, assert_same, naive, traced_and_coupled
from tests.killed import Killed
from tests.networks.fixtures import FIXTURES
from tests.networks.strategies import draw_recipe

KL = importlib.import_module("curlfx.importance.kl")  # the package has a function of that name
KINDS = (
    "basic_downsample", "option_a", "inverted_residual", "dense_block", "inception", "grouped_conv", "shuffle_v1",
    "attention_fused", "transformer", "convnext_block", "group_norm", "squeeze_excitation", "flatten_linear", "unet",
    "two_head", "dict_output",
)  # fmt: skip


def images_for(name: str, count: int = 5) -> Tensor:
    return FIXTURES[name].inputs(batch=count, seed=5)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_runs_again_gives_what_the_whole_network_gives(name: str) -> None:
    traced = trace(FIXTURES[name].build(), FIXTURES[name].inputs())
    coupling = couple(traced)
    images = images_for(name)
    assert_same(score(traced, coupling, "kl-exact", images).values, naive(traced, coupling, images))


@pytest.mark.parametrize("seed", range(6))
def test_composed_networks(seed: int) -> None:
    recipe = draw_recipe(random.Random(seed).choice, max_depth=4)
    module, (images,) = recipe.build(), recipe.inputs(batch=3)
    traced = trace(module, (images[:2],))
    coupling = couple(traced)
    with torch.no_grad():
        if traced.module(images).ndim < 2:
            pytest.skip("no classes")
    assert_same(score(traced, coupling, "kl-exact", images).values, naive(traced, coupling, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["option_a", "attention_fused", "transformer"])
@pytest.mark.parametrize("near", [1, 3000, 1 << 40])
def test_the_size_of_what_runs_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str, near: int) -> None:
    traced = trace(FIXTURES[name].build(), FIXTURES[name].inputs())
    coupling = couple(traced)
    want = score(traced, coupling, "kl-exact", images_for(name)).values
    monkeypatch.setattr(together, "NEAR_PROCESSOR", near)
    assert_same(score(traced, coupling, "kl-exact", images_for(name)).values, want)


@pytest.mark.parametrize("answer", [None, "wrong"])
def test_stacks_that_fail_or_differ_are_not_used(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    traced, coupling = traced_and_coupled(FIXTURES["option_a"].build())
    images = images_for("option_a")
    asked = []

    def vectorised(function: object, gates: Tensor) -> Tensor | None:
        asked.append(len(gates))
        if answer is None:
            return None
        return torch.stack([function(each) for each in gates]) * 1.01  # type: ignore[operator]

    monkeypatch.setattr(exact, "vectorised", vectorised)
    assert_same(score(traced, coupling, "kl-exact", images).values, naive(traced, coupling, images))
    assert asked == [group.width for group in coupling.groups]  # each tail is tried once


class Recurrent(nn.Module):
    """A layer that `vmap` does not know, and convolutions behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm = nn.Linear(6, 16), nn.LSTM(16, 12, batch_first=True)
        self.b, self.c, self.fc = nn.Conv1d(12, 8, 3), nn.Conv1d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(torch.relu(self.a(x)))[0].transpose(1, 2)
        return self.fc(torch.relu(self.c(torch.relu(self.b(x)))).mean(2))


def test_a_tail_that_cannot_be_stacked_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    traced = trace(Recurrent(), (torch.randn(2, 7, 6),))
    coupling, images, real = couple(traced), torch.randn(4, 7, 6), exact.vectorised
    tried: list[tuple[int, bool]] = []

    def vectorised(function: Callable[..., Tensor], gates: Tensor) -> Tensor | None:
        found = real(function, gates)
        tried.append((len(gates), found is not None))
        return found

    monkeypatch.setattr(exact, "vectorised", vectorised)
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    score(traced, coupling, "kl-exact", images)
    whole = list(tried)
    assert whole == [(16, False), (12, False), (8, True), (6, True)]
    finished, store = KL._Watch.finished, tmp_path / "scores.partial"

    def killed(self: object, place: int) -> None:
        finished(self, place)
        if place == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(KL._Watch, "finished", killed)
        with pytest.raises(Killed):
            score(traced, coupling, "kl-exact", images, store=store)
    tried.clear()
    score(traced, coupling, "kl-exact", images, store=store)
    assert tried == whole[2:]  # what a killed run had done does not change how the rest is computed


def test_only_what_comes_behind_the_gates_runs_again() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    network = GatedNetwork(*traced_and_coupled(net))
    names = [[str(node.target) for node in tail.section.nodes if tail.section] for tail in network.tails]
    assert [sum("conv2d" in name for name in each) for each in names] == [2, 1, 0]
    assert all(not any("batch_norm" in name for name in each) for each in names)
    assert [sum("mul" in name for name in each) for each in names] == [1, 1, 1]
    assert network.tails[0].work > network.tails[1].work > network.tails[2].work
    assert network.tails[0].work < network.work


def test_values_are_freed_once_nobody_needs_them() -> None:
    traced, coupling = traced_and_coupled(FIXTURES["bottleneck"].build())
    network = GatedNetwork(traced, coupling)
    sections = [tail.section for tail in network.tails if tail.section is not None]
    sections.sort(key=lambda section: Forward.ready(network.intact, section))
    given = network.values(images_for("bottleneck"), network.ones())
    forward = Forward(network.intact, sections, given)
    held = []
    for section in sections:
        values = forward.values(section)
        assert set(values) == set(section.inputs)
        held.append(len(forward.held))
        forward.done(section)
    assert max(held) <= 4  # two ways around a block, and what the next call reads
    assert not forward.held


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (4, 1, 1)])
def test_batches_are_weighed_by_their_images(sizes: tuple[int, ...]) -> None:
    traced, coupling = traced_and_coupled(FIXTURES["basic_identity"].build())
    images = images_for("basic_identity", 6)
    found = score(traced, coupling, "kl-exact", images.split(list(sizes)))
    assert_same(found.values, naive(traced, coupling, images))
    assert found.details == {"seed": 0, "images": 6}


def test_images_that_influence_each_other_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten(2)
    )
    traced, coupling = traced_and_coupled(net.double())
    images = images_for("basic_identity", 6)
    monkeypatch.setattr(together, "NEAR_PROCESSOR", 1)
    assert_same(score(traced, coupling, "kl-exact", images).values, naive(traced, coupling, images))


def test_a_graph_with_a_fixed_batch() -> None:
    case = FIXTURES["attention_fused"]
    traced = trace(case.build(), case.inputs(), dynamic_batch=False)
    coupling = couple(traced)
    for criterion, tolerance in (("kl-exact", 1e-12), ("kl-fast", 1e-2)):
        found = score(traced, coupling, criterion, list(images_for("attention_fused", 4).split(2)))
        assert_same(found.values, naive_in_pairs(traced, coupling, images_for("attention_fused", 4)), tolerance)


def naive_in_pairs(traced: object, coupling: object, images: Tensor) -> dict[str, np.ndarray]:
    parts = [naive(traced, coupling, part) for part in images.split(2)]  # type: ignore[arg-type]
    return {group: np.mean([part[group] for part in parts], 0) for group in parts[0]}


class Writer(nn.Module):
    """Writes into a part of a tensor, which no pass can take apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :, 0] = 0
        return self.fc(torch.relu(y).mean((2, 3)))


def test_a_network_that_writes_into_its_own_tensors_runs_as_a_whole() -> None:
    traced, coupling = traced_and_coupled(Writer().double())
    network = GatedNetwork(traced, coupling)
    assert network.impure is not None
    images = images_for("basic_identity")
    before = images.clone()
    for criterion in ("kl", "kl-exact"):
        assert_same(score(traced, coupling, criterion, images).values, naive(traced, coupling, images))
    assert torch.equal(images, before)


def test_dropout_in_place_is_nothing_in_evaluation_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(inplace=True), nn.ReLU(), nn.Conv2d(4, 3, 6), nn.Flatten())
    traced, coupling = traced_and_coupled(net.double())
    assert GatedNetwork(traced, coupling).pure
    for criterion, tolerance in (("kl-exact", 1e-12), ("kl-fast", 1e-1)):
        found = score(traced, coupling, criterion, images_for("basic_identity"))
        assert_same(found.values, naive(traced, coupling, images_for("basic_identity")), tolerance)


@pytest.fixture
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    monkeypatch.setattr(together, "NEAR_PROCESSOR", 40_000)


@pytest.mark.usefixtures("written_at_once")
@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_killed_run_goes_on_and_gets_the_same_bits(tmp_path: Path, after: int) -> None:
    traced, coupling = traced_and_coupled(FIXTURES["option_a"].build())
    images = images_for("option_a", 8).split(4)
    store, killer = tmp_path / "scores.partial", Killer()
    want = score(traced, coupling, "kl-exact", images, progress=killer)
    assert killer.steps > 9
    with pytest.raises(Killed):
        score(traced, coupling, "kl-exact", images, progress=Killer(after), store=store)
    rest = Killer()
    found = score(traced, coupling, "kl-exact", images, progress=rest, store=store)
    assert rest.steps < killer.steps or after == 1
    assert all(np.array_equal(found.values[group], values) for group, values in want.values.items())


@pytest.mark.usefixtures("written_at_once")
@pytest.mark.parametrize("after", [1, 3, 5, 6])
def test_a_killed_mixture_goes_on_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr(KL, "AFFORDABLE", 6)
    traced, coupling = traced_and_coupled(FIXTURES["option_a"].build())
    images = images_for("option_a", 8).split(4)
    store, killer = tmp_path / "scores.partial", Killer()
    want = score(traced, coupling, "kl", images, progress=killer)
    assert killer.steps > 6
    with pytest.raises(Killed):
        score(traced, coupling, "kl", images, progress=Killer(after), store=store)
    found = score(traced, coupling, "kl", images, store=store)
    assert found.details == want.details
    assert all(np.array_equal(found.values[group], values) for group, values in want.values.items())


@pytest.mark.slow
@pytest.mark.usefixtures("written_at_once")
def test_what_was_saved_for_another_question_or_is_damaged_is_not_used(tmp_path: Path) -> None:
    module = FIXTURES["basic_identity"].build()
    traced, coupling = traced_and_coupled(module)
    images = images_for("basic_identity")
    store = tmp_path / "scores.partial"
    score(traced, coupling, "kl-exact", images, store=store)
    done = store.read_bytes()
    other = copy.deepcopy(module)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    for network, batch in ((other, images), (module, images + 1)):
        again = traced_and_coupled(network)
        store.write_bytes(done)
        assert_same(score(*again, "kl-exact", batch, store=store).values, naive(*again, batch))
    for damaged in (b"", b"nonsense", done[:-9]):
        store.write_bytes(damaged)
        assert_same(score(traced, coupling, "kl-exact", images, store=store).values, naive(traced, coupling, images))
    store.write_bytes(done)
    killer = Killer(0)
    score(traced, coupling, "kl-exact", images, store=store, progress=killer)
    assert killer.steps == 0
