"""Channels go while a network is trained: masked is slim, physical is masked, and what is gone stays gone."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

import curlfx.gradual.pruner
from curlfx.cost import CostModel
from curlfx.coupling import couple
from curlfx.errors import BudgetError, ConfigError, PlanError, TargetError, UsageError
from curlfx.gradual import GradualPruner, Schedule
from curlfx.gradual.mask import difference
from curlfx.graph import TracedModel, show
from curlfx.importance.request import Request
from curlfx.planning.apply import slim
from curlfx.planning.price import Per
from tests.gradual.nets import batches, make, train_epoch

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "plain": lambda p: SGD(p, 0.05),
    "adamw": lambda p: AdamW(p, 1e-2, weight_decay=1e-2, amsgrad=True),
}
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def outputs(network: TracedModel) -> Tensor:
    with torch.inference_mode():
        return network.module.eval()(IMAGES)


def trained(
    physical: bool, optimizer: str, importance: str = "taylor", schedule: Schedule | None = None, epochs: int = 5
) -> tuple[TracedModel, GradualPruner]:
    traced = make()
    chosen = OPTIMIZERS[optimizer](traced.module.parameters())
    schedule = schedule or Schedule(1, 3, amount=5)
    pruner = GradualPruner(traced, schedule, importance, data=batches(99), physical=physical, optimizer=chosen)
    for epoch in range(1, epochs + 1):
        train_epoch(traced.module, chosen, epoch)
        pruner.step(epoch)
    return traced, pruner


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_is_slim_after_every_step_and_the_next_training_step(optimizer: str) -> None:
    traced = make()
    chosen = OPTIMIZERS[optimizer](traced.module.parameters())
    pruner = GradualPruner(traced, Schedule(1, 3, amount=6), "magnitude", optimizer=chosen)
    for epoch in range(1, 5):
        train_epoch(traced.module, chosen, epoch)
        assert difference(outputs(traced), outputs(pruner.slim())) <= 1e-9
        pruner.step(epoch)
        assert difference(outputs(traced), outputs(pruner.slim())) <= 1e-9
        for parameter, dead in pruner._masks._dead:
            assert not parameter[dead.expand_as(parameter)].any()
    assert len(pruner.history) == 3
    assert pruner.slim().module(IMAGES).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_physical_goes_the_same_way_as_masked(optimizer: str) -> None:
    masked, one = trained(False, optimizer)
    narrow, other = trained(True, optimizer)
    assert one.keep == other.keep
    assert [step.macs for step in one.history] == [step.macs for step in other.history]
    assert difference(outputs(masked), outputs(narrow)) <= 1e-7  # 15 steps of float64 round-off
    assert sum(p.numel() for p in narrow.module.parameters()) == other.cost.params < one.dense_cost.params
    state = other.dense_state_dict()
    assert state.keys() == one.dense_state_dict().keys()
    wide = make(3)
    wide.module.load_state_dict(state)
    assert difference(outputs(narrow), outputs(wide)) <= 1e-9
    assert difference(outputs(narrow), outputs(slim(wide, other.plan()))) <= 1e-9
    assert difference(outputs(narrow), outputs(other.slim())) == 0


@pytest.mark.parametrize("physical", [False, True])
def test_exactly_the_amount_goes_and_stays_gone(physical: bool) -> None:
    traced = make()
    optimizer = SGD(traced.module.parameters(), 0.05)
    pruner = GradualPruner(
        traced, Schedule(2, 6, amount=4), "magnitude", physical=physical, optimizer=optimizer,
        coupling=couple(traced, frozen=["last"]),
    )  # fmt: skip
    seen = [pruner.alive]
    for epoch in range(1, 9):
        step = pruner.step(epoch)
        assert (step is not None) == (epoch in (2, 4, 6))
        if step is not None:
            seen.append(pruner.alive)
    for before, after in itertools.pairwise(seen):
        assert not (after & ~before).any()
        assert before.sum() - after.sum() == 4
    assert [step.channels for step in pruner.history] == [4, 4, 4]
    assert pruner.history[-1].left == 16 - 12  # with the grouped layer its input, the residual stream, stays


@pytest.mark.parametrize("physical", [False, True])
def test_scores_are_divided_by_what_a_channel_costs_in_what_is_left(physical: bool) -> None:
    worth = {"stem.weight": 2.0, "block.conv1.weight": 1.4, "last.weight": 1.0}

    def fixed(request: Request) -> dict[str, np.ndarray]:
        return {group.id: np.full(group.width, worth.get(group.id, 9e9)) for group in request.coupling.groups}

    def went(per: Per) -> str:
        """First letters of the groups that give at each step."""
        pruner = GradualPruner(
            make(), Schedule(1, 6, amount=1), "fixed", criteria={"fixed": fixed}, per=per, physical=physical
        )
        letters = ""
        for epoch in range(1, 7):
            before = pruner.keep
            pruner.step(epoch)
            letters += "".join(group[0] for group, kept in pruner.keep.items() if kept != before.get(group))
        assert pruner.plan().per == pruner.state_dict()["settings"]["per"] == ("given" if per == dense else per)
        return letters

    costs = CostModel(make(), couple(make()))
    dense = {group: costs.per_channel(group).macs for group in (*worth, "stem.weight#blocks")}
    assert went("macs") == "ssssbb"  # two channels of each block of the stem stay, and two of the last layer
    assert went(dense) == "ssssll"
    assert went("channel") == "llllbb"


def test_kl_is_divided_by_macs_to_reach_macs_as_in_a_plan() -> None:
    asked = {"macs": Schedule(1, 2, target={"macs": "60%"}), "channel": Schedule(1, 2, target={"params": "60%"})}
    for per, schedule in asked.items():
        assert GradualPruner(make(), schedule, "kl-fast").per == per
    assert GradualPruner(make(), asked["macs"], "relevance").per == "channel"
    with pytest.raises(PlanError, match="per = 'latency': the table is of the dense network alone"):
        GradualPruner(make(), asked["macs"], "relevance", per="latency")
    with pytest.raises(PlanError, match="per = 'mcs': want 'channel', 'macs'"):
        GradualPruner(make(), asked["macs"], "relevance", per="mcs")  # type: ignore[arg-type]


@pytest.mark.parametrize("physical", [False, True])
def test_every_group_gives_the_same_share(physical: bool) -> None:
    schedule = Schedule(1, 3, target={"macs": "40%"})
    pruner = GradualPruner(make(), schedule, "magnitude", allocation="uniform", physical=physical)
    groups = pruner.coupling.groups
    units = {group.id: group.width if group.blocks is None else group.width // 2 for group in groups}
    whole = [group.id for group in groups if group.whole_blocks]
    for epoch in range(1, 4):
        assert pruner.step(epoch) is not None
        gone = {group.id: 1 - len(pruner.keep.get(group.id, range(group.width))) / group.width for group in groups}
        assert not any(gone[group] for group in whole)
        assert max(gone.values()) > 0
        assert all(max(gone.values()) - gone[group] <= 1 / units[group] + 1e-9 for group in units if group not in whole)
    assert pruner.reached
    assert pruner.plan().allocation == "uniform"
    with pytest.raises(ConfigError, match="made with allocation=uniform, not global"):
        GradualPruner(make(), schedule, "magnitude", physical=physical).load_state_dict(pruner.state_dict())
    with pytest.raises(
        PlanError, match="allocation = 'knapsack': while a network is trained want one of global, uniform"
    ):
        GradualPruner(make(), schedule, "magnitude", allocation="knapsack")


def test_the_floor_holds_whatever_is_asked() -> None:
    traced = make()
    pruner = GradualPruner(traced, Schedule(1, 9, amount="40%", floor=0.3), "random")
    for epoch in range(1, 10):
        pruner.step(epoch)
    widths = pruner.plan().widths
    assert {group.id: (group.width, widths[group.id]) for group in pruner.coupling.groups} == {
        "stem.weight": (12, 4), "block.conv1.weight": (16, 5), "last.weight": (12, 4),
        "stem.weight#blocks": (2, 2),
    }  # fmt: skip


def test_a_target_is_reached_in_equal_parts() -> None:
    _, pruner = trained(True, "sgd", "magnitude", Schedule(1, 4, target={"macs": "40%"}))
    dense, shares = pruner.dense_cost.macs, []
    for step, bound in zip(pruner.history, (0.85, 0.7, 0.55, 0.4), strict=True):
        shares.append(step.macs / dense)
        assert bound - 0.12 < shares[-1] <= bound
    assert pruner.reached
    assert pruner.epoch_macs == [dense, *[step.macs for step in pruner.history]]
    cheap, full = pruner.training_macs(10)
    assert full == 3 * 10 * 5 * dense
    assert cheap == 30 * sum(pruner.epoch_macs) < full


def test_a_target_stops_the_steps() -> None:
    _, pruner = trained(False, "plain", "magnitude", Schedule(1, 4, amount=7, target={"params": "70%"}))
    assert pruner.reached
    assert len(pruner.history) == 2
    assert [step.params <= 0.7 * pruner.dense_cost.params for step in pruner.history] == [False, True]
    assert pruner.epoch_macs == [pruner.dense_cost.macs] * 5  # masks save nothing


def test_rounded_widths() -> None:
    _, pruner = trained(False, "plain", "magnitude", Schedule(2, 4, target={"macs": "50%"}, round_to=4))
    assert pruner.reached
    assert all(width % 4 == 0 for group, width in pruner.plan().widths.items() if not group.endswith("#blocks"))


@pytest.mark.parametrize("physical", [False, True])
def test_an_amount_below_the_multiple_takes_one_multiple(physical: bool) -> None:
    pruner = GradualPruner(make(), Schedule(1, 3, amount=1, round_to=4), "magnitude", physical=physical)
    for epoch in (1, 2, 3):
        step = pruner.step(epoch)
        assert step is not None
        assert step.channels == 4
    assert all(width % 4 == 0 for group, width in pruner.plan().widths.items() if not group.endswith("#blocks"))


class Normed(nn.Module):
    """A GroupNorm averages over channels that go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3))


def test_masks_are_refused_where_they_are_not_slimming() -> None:
    with pytest.raises(UsageError, match=r"first\.weight; want physical=True"):
        GradualPruner(make(network=Normed), Schedule(1, 1, amount=2), "magnitude")
    traced = make(network=Normed)
    optimizer = SGD(traced.module.parameters(), 0.1, momentum=0.9)
    pruner = GradualPruner(traced, Schedule(1, 1, amount=2), "magnitude", physical=True, optimizer=optimizer)
    train_epoch(traced.module, optimizer, 1)
    pruner.step(1)
    train_epoch(traced.module, optimizer, 2)
    assert traced.module.get_parameter("first.weight").shape == (6, 3, 3, 3)
    assert traced.module.get_parameter("norm.weight").shape == (6,)


def test_what_an_optimiser_keeps_that_cannot_be_cut() -> None:
    traced = make()
    optimizer = Adafactor(traced.module.parameters())
    pruner = GradualPruner(traced, Schedule(1, 2, amount=2), "magnitude", physical=True, optimizer=optimizer)
    train_epoch(traced.module, optimizer, 1)
    traced.module.eval()
    before = show(traced)
    with pytest.raises(UsageError, match=r"Adafactor keeps 'row_var'.*physical=False"):
        pruner.step(1)
    assert show(traced) == before
    assert pruner.keep == {}


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"importance": "relevence"}, ConfigError, "importance = relevence"),
        ({"schedule": Schedule(1, 3, target={"macs": "2%"})}, BudgetError, "macs 2 % of dense cannot be reached"),
        ({"schedule": Schedule(1, 3, target={"flops": "2%"})}, TargetError, "flops"),
        ({"schedule": Schedule(1, 3, target={"latency_ms": 1.0})}, TargetError, "latency table"),
    ],
)
def test_what_is_refused_before_any_training(options: dict[str, object], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        GradualPruner(make(), **{"schedule": Schedule(1, 3, amount=5), "importance": "random", **options})


def test_epochs_count_up() -> None:
    pruner = GradualPruner(make(), Schedule(2, 4, amount=2), "random")
    pruner.step(1)
    for epoch in (1, 3):
        with pytest.raises(UsageError, match=rf"step\({epoch}\) after step\(1\).*: step\(2\)"):
            pruner.step(epoch)
    assert pruner.epoch_macs == [pruner.dense_cost.macs]


@pytest.mark.parametrize("physical", [False, True])
def test_an_optimiser_that_is_not_attached(physical: bool) -> None:
    traced = make()
    optimizer = SGD(traced.module.parameters(), 0.05)
    pruner = GradualPruner(traced, Schedule(1, 2, amount=2), "taylor", data=batches(99), physical=physical)
    train_epoch(traced.module, optimizer, 1)
    with pytest.raises(UsageError, match=r"attach\(optimizer\)"):
        pruner.step(1)
    assert pruner.keep == {}
    pruner.attach(optimizer)
    assert pruner.step(1) is not None


def test_an_optimiser_forgets_what_is_gone_after_each_of_its_steps() -> None:
    traced = make()
    optimizer = OPTIMIZERS["sgd"](traced.module.parameters())
    pruner = GradualPruner(traced, Schedule(1, 1, amount=9), "magnitude", optimizer=optimizer)
    pruner.step(1)
    traced.module(IMAGES).sum().backward()
    gradient = 0.0
    for parameter, dead in pruner._masks._dead:
        gradient += float(parameter.grad[dead.expand_as(parameter)].abs().sum())
    assert gradient > 0  # the sigmoid is not 0 at 0
    optimizer.step()
    for parameter, dead in pruner._masks._dead:
        assert not optimizer.state[parameter]["momentum_buffer"][dead.expand_as(parameter)].any()


@pytest.mark.slow
@pytest.mark.parametrize("physical", [False, True])
def test_a_checkpoint_goes_on_to_the_same_bits(physical: bool) -> None:
    whole, expected = trained(physical, "sgd")
    part, first = trained(physical, "sgd", epochs=2)
    optimizer = next(iter(first._optimizers))
    saved = {"pruner": first.state_dict(), "net": part.module.state_dict(), "optimizer": optimizer.state_dict()}

    again = make(5)
    second = OPTIMIZERS["sgd"](again.module.parameters())
    pruner = GradualPruner(
        again, Schedule(1, 3, amount=5), "taylor", data=batches(99), physical=physical, optimizer=second
    )
    pruner.load_state_dict(saved["pruner"])
    again.module.load_state_dict(saved["net"])
    second.load_state_dict(saved["optimizer"])
    for epoch in range(3, 6):
        train_epoch(again.module, second, epoch)
        pruner.step(epoch)
    assert pruner.keep == expected.keep
    assert pruner.epoch_macs == expected.epoch_macs
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name


def test_a_checkpoint_of_other_settings() -> None:
    state = GradualPruner(make(), Schedule(2, 4, amount=2), "random").state_dict()
    with pytest.raises(ConfigError, match="amount=2, not 3"):
        GradualPruner(make(), Schedule(2, 4, amount=3), "random").load_state_dict(state)
    fresh = GradualPruner(make(), Schedule(2, 4, amount=2), "random")
    for damaged in ({}, {**state, "keep": None}, {**state, "history": [{"epoch": 1}]}):
        with pytest.raises(ConfigError, match="not the state of a pruning"):
            fresh.load_state_dict(damaged)


def test_buffers_of_what_is_gone_stay_as_they_were() -> None:
    traced = make()
    before = {name: tensor.clone() for name, tensor in traced.module.state_dict().items() if "running" in name}
    pruner = GradualPruner(traced, Schedule(1, 1, amount=9), "magnitude", physical=True)
    pruner.step(1)
    after = pruner.dense_state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_step_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = make()
    optimizer = SGD(traced.module.parameters(), 0.05)
    pruner = GradualPruner(traced, Schedule(1, 2, amount=3), "magnitude", physical=True, optimizer=optimizer)

    def failing(*_: object, **__: object) -> None:
        raise PlanError("no coupling today")

    before = show(traced)
    with monkeypatch.context() as patched:
        patched.setattr(curlfx.gradual.pruner, "couple", failing)
        with pytest.raises(PlanError, match="no coupling today"):
            pruner.step(1)
    assert show(traced) == before
    trained = zip(optimizer.param_groups[0]["params"], traced.module.parameters(), strict=True)
    assert all(one is other for one, other in trained)
    assert pruner.step(1) is not None


def test_outputs_of_other_shapes_differ() -> None:
    assert difference(torch.ones(2, 3), torch.ones(1, 3)) == float("inf")
    assert difference(torch.ones(2), torch.tensor([1.0, 0.5])) == 0.5
