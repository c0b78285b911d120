"""The pruner of a job, from its configuration."""

from __future__ import annotations

from collections.abc import Iterable

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import ConfigError
from curlfx.gradual import GradualPruner, Schedule
from curlfx.graph.traced import TracedModel
from curlfx.planning import resolve_round_to
from curlfx.run.config import RunConfig, TargetConfig

STEPS = 10


def schedule_of(config: RunConfig) -> Schedule:
    """The schedule that ``config`` asks for.

    Raises: ConfigError where ``gradual`` asks for none, or for one that does not fit the epochs.
    """
    asked, epochs = config.gradual, config.train.epochs
    last = asked.last or max(1, round(0.75 * epochs))
    interval = max(1, last // STEPS) if asked.interval == "auto" else asked.interval
    if not interval:
        raise ConfigError("gradual.interval = 0: nothing goes while training; want 'auto' or a number of epochs")
    if not interval <= last <= epochs:
        raise ConfigError(
            f"gradual.interval = {interval}, gradual.last = {last}, train.epochs = {epochs}: want interval at most "
            "last, and last at most epochs"
        )
    exact = config.round_to == "auto" and asked.amount is not None
    return Schedule(
        interval=interval,
        last=last,
        amount=asked.amount,
        target=config.target.as_mapping(),
        floor=asked.floor,
        round_to=1 if exact else resolve_round_to(config.round_to, config.bench.provider),
    )


def unmeasured(config: RunConfig) -> RunConfig:
    """The same without a latency as target, which nothing but a measurement can judge."""
    others = {name: amount for name, amount in config.target.as_mapping().items() if name != "latency_ms"}
    return config.model_copy(update={"target": TargetConfig(**others or {"macs": "100%"})})


def make_pruner(
    config: RunConfig,
    traced: TracedModel,
    importance: str,
    data: Iterable[object] | None = None,
    coupling: Coupling | None = None,
    costs: CostModel | None = None,
) -> GradualPruner:
    """The pruner that ``config`` asks for; where a latency is the target, ``costs`` must know it.

    Raises: as `curlfx.GradualPruner`, before anything is trained; ConfigError where a normalisation averages over
        channels that may go: no dense network does then what the slim one does, so the two cannot be verified.
    """
    coupling = coupling or couple(traced, frozen=config.ignored_layers)
    averaged = [group.id for group in coupling.groups if group.statistics_change]
    if averaged:
        raise ConfigError(
            f"gradual: a normalisation averages over the channels of {', '.join(averaged)}; name them in "
            "ignored_layers, or use curlfx.GradualPruner with physical=True in a loop of your own"
        )
    return GradualPruner(
        traced,
        schedule_of(config),
        importance,
        data,
        coupling=coupling,
        physical=config.gradual.physical,
        costs=costs,
        seed=config.seed,
        per=config.per,
        allocation=config.allocation or "global",
    )
