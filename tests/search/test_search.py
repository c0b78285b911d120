"""The search against brute force; proxies against networks that are built; interruption, seeds, refusals."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from curlfx.cost import CostModel
from curlfx.errors import BudgetError, CheckError, ConfigError, DataError, OutputError
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning import SlimPlan, slim
from curlfx.recovery import evaluate, recalibrate
from curlfx.search import EvolutionSettings, ProxyData, Space, Supernet, evolve, plan_genome, search
from curlfx.search.budget import Budget
from curlfx.search.engine import InProcess
from curlfx.search.evolve import front, random_genomes
from curlfx.search.proxy import AccuracyProxy, Part, StageProxy
from curlfx.search.space import Genome
from tests.search.networks import Toy, images, labels, supernet

SMALL = EvolutionSettings(population=6, parents=3, mutants=3, crossovers=2, generations=4, mutation=0.3)


def toy() -> Supernet:
    return supernet(Toy(), ("relu",), least=0.34, step=0.33)


@pytest.fixture(scope="module")
def net() -> Supernet:
    return toy()


@pytest.fixture(scope="module")
def data() -> ProxyData:
    held_out = tuple((images(6, seed), labels(6, seed)) for seed in (2, 3))
    return ProxyData((images(6, 0), images(6, 1)), held_out)


def everything(space: Space, budget: Budget) -> list[Genome]:
    """All networks of a small space that are within the budget."""
    return [genome for genome in itertools.product(*space.grids) if budget.holds(genome)]


def by_hand(net: Supernet, data: ProxyData, genome: tuple[int, ...]) -> float:
    """Both stage losses of a Toy with its first channels, written out with slices of the weights."""
    state = net.network.module.state_dict()
    a, b, c = genome
    whole_a, whole_b, whole_c = net.space.full
    convolve = torch.nn.functional.conv2d

    def normalised(values: list[Tensor], name: str, width: int, measured: list[Tensor]) -> list[Tensor]:
        mean = torch.stack([value.mean((0, 2, 3)) for value in measured]).mean(0)
        variance = torch.stack([value.var((0, 2, 3)) for value in measured]).mean(0)
        weight, bias = state[f"{name}.weight"][:width], state[f"{name}.bias"][:width]
        shaped = [part[:, None, None] for part in (mean, weight / (variance + 1e-5).sqrt(), bias)]
        return [((value - shaped[0]) * shaped[1] + shaped[2]).relu() for value in values]

    def first(images: list[Tensor], width: int) -> list[Tensor]:
        def made(batches: Iterable[Tensor]) -> list[Tensor]:
            return [convolve(x, state["a.weight"][:width], padding=1) for x in batches]

        return normalised(made(images), "a_bn", width, made(data.calibration))

    def second(borders: list[Tensor], calibration: list[Tensor], a: int, b: int, c: int) -> list[Tensor]:
        def made(batches: list[Tensor]) -> list[Tensor]:
            return [convolve(x[:, :a], state["b.weight"][:b, :a], stride=2, padding=1) for x in batches]

        found = normalised(made(borders), "b_bn", b, made(calibration))
        found = [convolve(x, state["c.weight"][:c, :b], state["c.bias"][:c]).relu().mean((2, 3)) for x in found]
        return [x @ state["head.weight"][:, :c].T + state["head.bias"] for x in found]

    held_out = [images for images, _ in data.held_out]
    borders, calibration = first(held_out, whole_a), first(list(data.calibration), whole_a)
    errors = [
        (mine - border[:, :a]).square().mean() / border.var(unbiased=False)
        for mine, border in zip(first(held_out, a), borders, strict=True)
    ]
    teachers = second(borders, calibration, whole_a, whole_b, whole_c)
    entropies = [
        -(teacher.softmax(1) * mine.log_softmax(1)).sum(1).mean()
        for mine, teacher in zip(second(borders, calibration, a, b, c), teachers, strict=True)
    ]
    return float(torch.stack(errors).mean() + torch.stack(entropies).mean())


def test_the_space_is_three_by_three(net: Supernet) -> None:
    assert [len(grid) for grid in net.space.grids] == [3, 3, 3]
    assert len(net.stages) == 2


@pytest.mark.parametrize("target", [{"macs": "60%"}, {"macs": "80%", "params": "50%"}])
def test_search_equals_brute_force(net: Supernet, data: ProxyData, target: dict[str, str]) -> None:
    budget = Budget(net.space, CostModel(net.network, net.space.coupling), target, lower=0.3)
    values = {genome: by_hand(net, data, genome) for genome in everything(net.space, budget)}
    assert 3 < len(values) < 27
    found = search(net, data, target, SMALL, lower=0.3)
    assert found.best.genome == min(values, key=values.__getitem__)
    assert found.best.value == pytest.approx(values[found.best.genome], rel=1e-9)
    assert all(budget.holds(one.genome) for one in (found.best, *found.front))
    assert list(found.history) == sorted(found.history, reverse=True)
    assert search(net, data, target, SMALL, lower=0.3) == found


def test_evolution_reaches_every_network_of_a_small_space(net: Supernet) -> None:
    budget = Budget(net.space, CostModel(net.network, net.space.coupling), {"macs": "90%"}, lower=0.0)
    wanted = everything(net.space, budget)
    settings = EvolutionSettings(population=9, parents=3, mutants=4, crossovers=2, generations=12, mutation=0.4)
    asked: list[tuple[int, ...]] = []

    def judge(genomes: Iterable[tuple[int, ...]]) -> list[float]:
        asked.extend(genomes)
        return [float(sum(genome)) for genome in genomes]

    known = evolve(net.space, budget, judge, settings)
    assert set(known) == set(wanted)
    assert len(asked) == len(set(asked))
    assert known == {genome: float(sum(genome)) for genome in wanted}


def test_stage_proxy_of_the_last_stage_is_that_of_a_slim_network(net: Supernet, data: ProxyData) -> None:
    """A single stage is the whole network: its slim twin, measured by `recalibrate`, gives the soft cross-entropy."""
    one = Supernet(net.network, net.space, ())
    proxy = StageProxy(one, data)

    def logits(genome: tuple[int, ...]) -> list[Tensor]:
        network = run(one.network, [Slim(one.space.coupling, one.space.keep(genome))])[0].module
        recalibrate(network, ((batch, labels()) for batch in data.calibration), device="cpu")
        with torch.no_grad():
            return [network(batch) for batch, _ in data.held_out]

    teacher = torch.cat(logits(one.space.full))
    for genome in (one.space.full, one.space.tiny, (2, 6, 4)):
        (part,) = proxy.parts(genome)
        student = torch.cat(logits(genome)).log_softmax(1)
        assert_close(
            torch.tensor(proxy.measure(part), dtype=torch.float64), -(teacher.softmax(1) * student).sum(1).mean()
        )


def test_the_whole_network_has_no_stage_error(net: Supernet, data: ProxyData) -> None:
    proxy = StageProxy(net, data)
    first, last = map(proxy.measure, proxy.parts(net.space.full))
    assert first == 0.0
    assert last > 0.0


def test_little_memory_gives_the_same_numbers(net: Supernet, data: ProxyData) -> None:
    plenty, none = StageProxy(net, data), StageProxy(net, data, memory=0)
    for part in plenty.parts(net.space.tiny):
        assert plenty.measure(part) == none.measure(part)


def test_stages_with_the_same_widths_are_one_part(net: Supernet, data: ProxyData) -> None:
    proxy = StageProxy(net, data)
    one, other = proxy.parts((2, 3, 2)), proxy.parts((2, 3, 6))
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[1] != proxy.parts((4, 3, 2))[1]  # what comes in counts


def test_accuracy_proxy_is_the_error_of_the_recalibrated_slim_network(net: Supernet, data: ProxyData) -> None:
    genome = (4, 6, 4)
    network = run(net.network, [Slim(net.space.coupling, net.space.keep(genome))])[0].module
    recalibrate(network, ((batch, labels()) for batch in data.calibration), device="cpu")
    before = {name: tensor.clone() for name, tensor in net.network.module.state_dict().items()}
    found = AccuracyProxy(net, data).measure(genome)
    assert found == 1 - evaluate(network, list(data.held_out), device="cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.network.module.state_dict().items())


class Flaky(InProcess):
    """Stops after some measurements, as a process that is killed."""

    def __init__(self, proxy: StageProxy, count: int) -> None:
        super().__init__(proxy)
        self.count = count

    def measure(self, parts: Iterable[Part]) -> Iterator[tuple[Part, float]]:
        for found in super().measure(parts):
            if self.count == 0:
                raise KeyboardInterrupt
            self.count -= 1
            yield found


def test_an_interrupted_search_goes_on_to_the_same_result(net: Supernet, data: ProxyData, tmp_path: Path) -> None:
    state, options = tmp_path / "search.json", {"lower": 0.3, "controls": True}
    straight = search(net, data, {"macs": "60%"}, SMALL, **options)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        search(net, data, {"macs": "60%"}, SMALL, state=state, engine=Flaky(StageProxy(net, data), 4), **options)  # type: ignore[arg-type]
    resumed = search(net, data, {"macs": "60%"}, SMALL, state=state, **options)  # type: ignore[arg-type]
    assert (resumed.known, resumed.measured) == (4, straight.measured - 4)
    assert (resumed.best, resumed.front, resumed.controls) == (straight.best, straight.front, straight.controls)
    assert set(straight.controls) == {"uniform", "random"}


def test_numbers_of_other_weights_are_not_used(data: ProxyData, tmp_path: Path) -> None:
    net, state = toy(), tmp_path / "search.json"
    search(net, data, {"macs": "60%"}, SMALL, lower=0.3, state=state)
    with torch.no_grad():
        net.network.module.get_parameter("head.weight").mul_(2)
    found = search(net, data, {"macs": "60%"}, SMALL, lower=0.3, state=state)
    assert found.known == 0
    state.write_text("{")
    with pytest.raises(OutputError, match="not the record of a search"):
        search(net, data, {"macs": "60%"}, SMALL, lower=0.3, state=state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_the_search(data: ProxyData, tmp_path: Path, value: float) -> None:
    net, state = toy(), tmp_path / "search.json"
    with torch.no_grad():
        net.network.parameter("head.bias").fill_(value)
    with pytest.raises(CheckError, match=r"the proxy of \(1, \d, \d, \d\) .* is nan; want finite weights"):
        search(net, data, {"macs": "60%"}, SMALL, lower=0.3, state=state)
    assert "NaN" not in state.read_text()


def test_calibration_takes_no_batch_of_one_image() -> None:
    batches = [(images(count, count), labels(count)) for count in (1, 3, 1, 2)]
    found = ProxyData.of(batches, [(images(1), labels(1))], calibration_batches=5)
    assert [len(batch) for batch in found.calibration] == [3, 2, 3, 2, 3]
    assert len(found.held_out) == 1
    with pytest.raises(DataError, match="at least one batch of 2 or more training images"):
        ProxyData.of(batches[:1], batches)


def test_a_loader_that_shuffles_gives_the_same_images_again() -> None:
    loader = DataLoader(TensorDataset(images(12), labels(12)), batch_size=4, shuffle=True)
    torch.manual_seed(1)
    first = ProxyData.of(loader, loader, calibration_batches=5)
    torch.manual_seed(2)
    second = ProxyData.of(loader, loader, calibration_batches=5)
    assert all(torch.equal(one, other) for one, other in zip(first.calibration, second.calibration, strict=True))
    assert not torch.equal(first.calibration[0], first.calibration[3])  # the next epoch is in another order
    assert torch.equal(first.held_out[0][0], second.held_out[0][0])


def test_the_plan_of_a_genome_keeps_its_channels(net: Supernet, data: ProxyData) -> None:
    found = search(net, data, {"macs": "60%"}, SMALL, lower=0.3)
    plan = plan_genome(net.network, net.space.coupling, net.space, None, found.best, {"macs": "60%"}, seed=3)
    assert plan.keep == net.space.keep(found.best.genome)
    assert (plan.allocation, plan.target, plan.provenance["seed"]) == ("search", {"macs": "60%"}, 3)
    assert plan.after == found.best.cost
    assert SlimPlan.from_json(plan.to_json()) == plan
    narrow = slim(net.network, plan)
    *_, logits = net.outputs(images(), net.gates(found.best.genome), "measured")
    assert_close(narrow.module(images()), logits, rtol=1e-9, atol=1e-12)


def test_front_by_hand() -> None:
    assert front([3, 1, 2, 2, 4], [1.0, 5.0, 3.0, 2.0, 1.0]) == [1, 3, 0]


def test_random_genomes_follow_from_the_seed(net: Supernet) -> None:
    budget = Budget(net.space, CostModel(net.network, net.space.coupling), {"macs": "60%"}, lower=0.3)
    assert random_genomes(budget, 4, 0) == random_genomes(budget, 4, 0)
    assert len(set(random_genomes(budget, 100, 0))) == len(everything(net.space, budget))


def test_refusals(net: Supernet, data: ProxyData) -> None:
    with pytest.raises(BudgetError, match=r"cannot be reached: the narrowest network"):
        search(net, data, {"macs": "2%"})
    with pytest.raises(BudgetError, match=r"between 0\.999 of the target .macs 33 % of dense. and the target"):
        search(net, data, {"macs": "33%"}, lower=0.999)
    with pytest.raises(ConfigError, match="proxy = 'best'"):
        search(net, data, proxy="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mutants = 25 and crossovers = 25: want at most population = 40"):
        EvolutionSettings(population=40)
    with pytest.raises(DataError, match="at least one batch"):
        ProxyData((), ())
    assert isinstance(net.space, Space)
