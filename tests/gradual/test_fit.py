"""Pruning in the project's own training loop: it resumes to the same bits after every epoch, and lays out anew."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from curlfx.errors import ConfigError
from curlfx.gradual import GradualPruner, PruneStep, Pruning, Schedule
from curlfx.graph import TracedModel, trace
from curlfx.recovery import FitResult, TrainSettings, evaluate, fit
from curlfx.recovery.batches import Batch

SETTINGS = TrainSettings(epochs=4, lr=0.1, warmup_epochs=1, clip_gradient=1.0, amp="off")
PROXY = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3)]


class Clouds:
    """Batches of noise; a function of the epoch."""

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(100 + number)
        return [
            (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(3, (8,), generator=generator))
            for _ in range(3)
        ]


def network(seed: int) -> TracedModel:
    return copy.deepcopy(_network(seed))


@cache
def _network(seed: int) -> TracedModel:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip
    return trace(model.eval(), (torch.randn(2, 3, 8, 8),))


class StopError(Exception):
    pass


def train(
    traced: TracedModel, physical: bool, path: Path | None = None, stop: int | None = None, amount: int = 6
) -> tuple[FitResult, GradualPruner, list[PruneStep]]:
    """Train; ``stop`` kills it in the epoch after that one."""

    class Kill:
        def on_step(self, event: object) -> None:
            if stop is not None and event.step == 3 * stop + 2:
                raise StopError

    pruner = GradualPruner(traced, Schedule(1, 3, amount=amount), "taylor", data=PROXY, physical=physical)
    told: list[PruneStep] = []
    supplement = Pruning(pruner, told.append)
    result = fit(
        traced.module, Clouds(), SETTINGS, validation=Clouds(), progress=Kill(), checkpoint=path, resume=True,
        supplement=supplement,
    )  # fmt: skip
    return result, pruner, told


@pytest.mark.slow
@pytest.mark.parametrize("physical", [False, True])
def test_resumes_after_every_epoch_to_the_same_bits(physical: bool, tmp_path: Path) -> None:
    whole = network(0)
    result, expected, told = train(whole, physical)
    assert told == expected.history
    assert len(told) == 3
    assert len(result.history) == 4
    path = tmp_path / "train.pt"
    for stop in (0, 1, 2, 3):  # each process gets one epoch further than the one before
        with pytest.raises(StopError):
            train(network(0 if stop < 2 else stop), physical, path, stop)  # what a checkpoint follows does not matter
    resumed = network(9)
    again, pruner, told = train(resumed, physical, path)
    assert again.resumed_after == 3
    assert pruner.keep == expected.keep
    assert [(step.epoch, step.channels, step.macs) for step in pruner.history] == [
        (step.epoch, step.channels, step.macs) for step in expected.history
    ]
    assert told == []
    state = resumed.module.state_dict()
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for name, tensor in expected.dense_state_dict().items():
        assert torch.equal(tensor, pruner.dense_state_dict()[name]), name
    assert [one.loss for one in again.history] == [one.loss for one in result.history]
    assert [one.validation for one in again.history] == [one.validation for one in result.history]


def test_validation_is_of_the_pruned_network() -> None:
    traced = network(0)
    result, pruner, _ = train(traced, True)
    slim = pruner.slim().module
    assert len(slim.get_parameter("0.weight")) + len(slim.get_parameter("4.weight")) == 16 + 24 - 3 * 6
    assert result.accuracy == evaluate(slim, Clouds()) == evaluate(traced.module, Clouds())


def test_what_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "train.pt"
    with pytest.raises(StopError):
        train(network(0), True, path, 2)
    with pytest.raises(ConfigError, match="amount=6, not 5"):
        train(network(0), True, path, amount=5)
    with pytest.raises(ConfigError, match="was made with gradual=True, not None"):
        fit(network(0).module, Clouds(), SETTINGS, checkpoint=path, resume=True)
    pruner = GradualPruner(network(0), Schedule(1, 1, amount=1), "random")
    with pytest.raises(ConfigError, match="ema_decay"):
        fit(
            pruner.traced.module,
            Clouds(),
            TrainSettings(epochs=1, ema_decay=0.9, amp="off"),
            supplement=Pruning(pruner),
        )


def test_the_optimiser_is_let_go() -> None:
    traced = network(0)
    _, pruner, _ = train(traced, False)
    optimizer = torch.optim.SGD(traced.module.parameters(), 0.1)
    dead = pruner._masks._dead[0]
    with torch.no_grad():
        dead[0].fill_(1.0)
    optimizer.step()
    assert dead[0].masked_select(dead[1].expand_as(dead[0])).all()
    pruner.after_optimizer_step()
    assert not dead[0].masked_select(dead[1].expand_as(dead[0])).any()
