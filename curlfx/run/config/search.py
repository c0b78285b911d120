"""The part ``search``: widths that are searched for."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from curlfx.errors import ConfigError
from curlfx.run.config.section import Count, Natural, Positive, Section
from curlfx.run.config.training import TrainingConfig
from curlfx.search.evolve import EvolutionSettings
from curlfx.search.proxy import ProxyName
from curlfx.search.sandwich import SandwichSettings


class SupernetConfig(TrainingConfig):
    """Training of the supernet.

    Attributes:
        random: Random networks in every step.
        full: Whether the whole network learns from the labels in every step.
        tiny: Whether the narrowest network is in every step.
    """

    epochs: Natural = 20
    batch_size: Count = 128
    lr: Positive = 0.02
    random: Natural = 2
    full: bool = True
    tiny: bool = True

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            self.sandwich(seed=0, device="auto")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def sandwich(self, *, seed: int, device: str) -> SandwichSettings:
        """The same for `curlfx.search`. Raises: ConfigError for values that do not go together."""
        return SandwichSettings(self.settings(seed=seed, device=device), self.random, self.full, self.tiny)


class SearchConfig(Section):
    """A search for the widths, in place of a plan from scores alone: stage-wise pruning.

    Attributes:
        enabled: Whether there is one; ``curlfx search`` switches it on.
        least: Smallest share of a group that may stay.
        step: Distance of the shares of a group that are tried.
        divisor: Kept channels are multiples of this; ``auto``: 8 where a group is 128 wide or wider, else 1.
        cuts: Nodes of the graph to cut the network behind; none goes by resolution, an empty list makes one stage.
        train: Training of the supernet.
        proxy: ``stages``: the losses of all stages; ``accuracy``: the error rate of the assembled network.
        held_out: Share of the training images to judge by, which the supernet does not see, where the data has no
            ``val``.
        calibration_batches: Training batches on which BatchNorm's statistics are measured for every network.
        population, parents, mutants, crossovers, mutation, generations: As in `curlfx.search.EvolutionSettings`.
        lower: Networks use this share of a target at least.
        controls: Recover uniform widths and the best of as many random networks as well, and report them.
        start: Weights that the slim network starts its recovery from: of the ``supernet``, of the ``dense`` network, or
            ``scratch``.
        workers: Ray workers that judge networks; 0: this process does.
        ray_address: A Ray cluster; none starts Ray on this machine.
    """

    enabled: bool = False
    least: Annotated[float, Field(gt=0, le=1)] = 0.2
    step: Annotated[float, Field(gt=0, le=1)] = 0.1
    divisor: Count | Literal["auto"] = "auto"
    cuts: Annotated[tuple[str, ...] | None, Field(description="a list of nodes, like [relu_6, relu_12]")] = None
    train: SupernetConfig = SupernetConfig()
    proxy: ProxyName = "stages"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    calibration_batches: Count = 20
    population: Count = 50
    parents: Count = 10
    mutants: Natural = 25
    crossovers: Natural = 25
    mutation: Annotated[float, Field(gt=0, le=1)] = 0.1
    generations: Count = 20
    lower: Annotated[float, Field(ge=0, lt=1)] = 0.95
    controls: bool = False
    start: Literal["supernet", "dense", "scratch"] = "supernet"
    workers: Natural = 0
    ray_address: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            self.evolution(seed=0)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.ray_address is not None and self.workers == 0:
            raise ValueError("ray_address needs workers: give search.workers too")
        if self.train.batch_size == 1:
            raise ValueError("train.batch_size=1: networks are measured on batches of 2 or more images")
        return self

    def evolution(self, *, seed: int) -> EvolutionSettings:
        """The same for `curlfx.search`. Raises: ConfigError for values that do not go together."""
        names = {field.name for field in fields(EvolutionSettings)} - {"seed"}
        return EvolutionSettings(**self.model_dump(include=names), seed=seed)
