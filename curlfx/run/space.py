"""What a search of a job is about: the widths to choose from, and the images to judge by."""

from __future__ import annotations

from dataclasses import replace

from curlfx.cost import CostModel
from curlfx.coupling import Coupling
from curlfx.errors import DataError
from curlfx.graph.traced import TracedModel
from curlfx.importance import Scores
from curlfx.run.config import RunConfig
from curlfx.search import Space, Supernet
from curlfx.search.budget import Budget
from curlfx.search.workers import load_ray
from curlfx.sources import DataSource
from curlfx.sources.images import held_out


def space_of(config: RunConfig, coupling: Coupling, scores: Scores | None) -> Space:
    """The widths that ``config`` allows."""
    wanted = config.search
    return Space.of(coupling, scores, least=wanted.least, step=wanted.step, divisor=wanted.divisor)


def check_search(config: RunConfig, traced: TracedModel, coupling: Coupling) -> None:
    """Refuse a search that cannot end well, before any training.

    Raises: ConfigError for cuts that are none, and for workers without Ray; ModelError for a network that cannot be a
        supernet; TargetError; BudgetError for a target that its narrowest network misses, or uniform widths as a
        control. What a latency is only a measurement tells, later.
    """
    if config.search.workers:
        load_ray()
    space = space_of(config, coupling, None)
    Supernet(traced, space, config.search.cuts)
    target = {name: amount for name, amount in config.target.as_mapping().items() if name != "latency_ms"}
    if target:
        budget = Budget(space, CostModel(traced, coupling), target, lower=config.search.lower)
        if config.search.controls:
            budget.uniform()


def divided(data: DataSource, share: float) -> DataSource:
    """The data with ``share`` of its training images as ``val``, the same ones every time, unless it has some.

    Raises: DataError when that leaves none of either.
    """
    if "val" in data.splits:
        return data
    train = data.images("train")
    stay, out = held_out(train.labels, share)
    if len(stay) < 2 or len(out) == 0:
        raise DataError(
            f"search.held_out = {share}: {len(stay)} images of {data.name} would be left for training, and {len(out)} "
            "to judge by; want another share"
        )
    return replace(data, splits={**data.splits, "train": train.subset(stay), "val": train.subset(out)})
