"""Measuring elsewhere: the same numbers, in whatever order, wherever, and however often a worker dies."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from curlfx.coupling import couple
from curlfx.errors import CheckError, ConfigError, UsageError
from curlfx.graph import show, trace
from curlfx.search import ProxyData, Supernet, search, workers
from curlfx.search.engine import InProcess
from curlfx.search.proxy import Part, Proxy, ProxyName, StageProxy
from curlfx.search.ship import to_bytes
from curlfx.search.workers import RayEngine, Recipe, open_engine
from tests.networks.case import Case
from tests.networks.fixtures import FIXTURES
from tests.search.networks import Chain, images, labels, supernet
from tests.search.test_search import SMALL

TARGET = {"macs": "60%"}
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [search]")


@pytest.fixture(scope="module")
def net() -> Supernet:
    torch.manual_seed(0)
    return supernet(Chain())


@pytest.fixture(scope="module")
def data() -> ProxyData:
    held_out = tuple((images(6, seed), labels(6, seed)) for seed in (2, 3))
    return ProxyData((images(6, 0), images(6, 1)), held_out)


class Backwards(InProcess):
    """Gives the last part first."""

    def measure(self, parts: Iterable[Part]) -> Iterator[tuple[Part, float]]:
        return reversed(list(super().measure(parts)))


class Mortal:
    """A proxy that takes its process with it, the first time that it has measured three parts."""

    def __init__(self, proxy: Proxy, marker: Path) -> None:
        self.proxy, self.marker, self.count = proxy, marker, 0

    def parts(self, genome: tuple[int, ...]) -> tuple[Part, ...]:
        return self.proxy.parts(genome)

    def measure(self, part: Part) -> float:
        self.count += 1
        if self.count > 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.proxy.measure(part)


class Deadly(Recipe):
    """Makes mortal proxies."""

    def __init__(self, supernet: Supernet, data: ProxyData, marker: Path) -> None:
        super().__init__(supernet, data, "stages")
        self.marker = marker

    def make(self) -> Proxy:
        return Mortal(super().make(), self.marker)


def test_the_order_of_measurements_does_not_matter(net: Supernet, data: ProxyData) -> None:
    straight = search(net, data, TARGET, SMALL, controls=True)
    assert search(net, data, TARGET, SMALL, controls=True, engine=Backwards(StageProxy(net, data))) == straight


@pytest.mark.parametrize("name", ["stages", "accuracy"])
def test_a_proxy_that_travelled_measures_the_same(net: Supernet, data: ProxyData, name: ProxyName) -> None:
    recipe = Recipe(net, data, name)
    here, there = recipe.make(), pickle.loads(to_bytes(recipe)).make()
    for genome in (net.space.tiny, net.space.full):
        assert there.parts(genome) == here.parts(genome)
        assert [there.measure(part) for part in there.parts(genome)] == list(map(here.measure, here.parts(genome)))
    part = here.parts(net.space.tiny)[0]
    assert workers.measure_part(f"key-{name}", lambda: to_bytes(recipe), part) == here.measure(part)


@pytest.mark.parametrize("case", [*FIXTURES.values()][::6], ids=str)
def test_graphs_and_couplings_travel(case: Case) -> None:
    inputs = case.inputs()
    traced = trace(case.build(), inputs)
    coupling = couple(traced)
    twin, other = pickle.loads(to_bytes((traced, coupling)))
    assert show(twin) == show(traced)
    assert [group.id for group in other.groups] == [group.id for group in coupling.groups]
    other.check(twin)
    for node in traced.graph.nodes:
        assert [array.tolist() for array in other.labels(node.name)] == [
            array.tolist() for array in coupling.labels(node.name)
        ]
    wanted, found = (torch.utils._pytree.tree_leaves(each.module(*inputs)) for each in (traced, twin))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_recipe_holds_weights_of_its_own(net: Supernet, data: ProxyData) -> None:
    """What is moved to the CPU for the workers must not move the supernet along."""
    held = {id(tensor) for tensor in net.network.tensors().values()}
    found = Recipe(net, data, "stages")._network.tensors()
    assert found.keys() == net.network.tensors().keys()
    assert held.isdisjoint(map(id, found.values()))


class Untouched:
    """Ray that is installed and not running."""

    started = False

    def is_initialized(self) -> bool:
        return self.started

    def init(self, **_: object) -> None:
        self.started = True


def test_ray_is_not_started_for_what_cannot_travel(
    net: Supernet, data: ProxyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, recipe = Untouched(), Recipe(net, data, "stages")
    recipe.make = lambda: None  # type: ignore[method-assign,assignment,return-value]
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        RayEngine(recipe, 2)
    assert not ray.started


def test_what_cannot_travel_is_told() -> None:
    with pytest.raises(UsageError, match=r"cannot be sent to another process .* want workers=0"):
        to_bytes(lambda: None)


def test_without_ray_it_says_what_to_install(net: Supernet, data: ProxyData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'curlfx\[search\]', or workers=0"),
        open_engine(net, data, "stages", 2),
    ):
        pass
    with open_engine(net, data, "stages") as engine:
        assert engine is None


class Failing:
    """An engine's Ray, whose task failed."""

    class exceptions:  # noqa: N801 - its name in Ray
        class RayError(Exception):
            pass

    def get(self, reference: object) -> float:
        raise self.exceptions.RayError(reference)


def test_a_worker_that_fails_ends_the_search(net: Supernet) -> None:
    engine = RayEngine.__new__(RayEngine)
    engine._ray = Failing()
    with pytest.raises(CheckError, match=r"a worker failed \(ValueError: no image\); what was measured is kept"):
        engine._value("task\nValueError: no image")
    with pytest.raises(CheckError, match=r"a worker failed \(RayError\)"):
        engine._value("")


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_one_worker_and_two_find_the_same_and_one_may_die(net: Supernet, data: ProxyData, tmp_path: Path) -> None:
    import ray

    straight, marker = search(net, data, TARGET, SMALL), tmp_path / "died"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        survived = search(net, data, TARGET, SMALL, engine=RayEngine(Deadly(net, data, marker), 2))
        assert marker.exists()
        assert survived == straight
        with open_engine(net, data, "stages", 1) as engine:
            assert search(net, data, TARGET, SMALL, engine=engine) == straight
        assert ray.is_initialized()  # it was not the engine's to stop
    finally:
        ray.shutdown()
