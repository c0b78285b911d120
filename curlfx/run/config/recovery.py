"""The part ``recovery``: the trainings of the slim network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from curlfx.errors import ConfigError
from curlfx.passes.expand_linear import Compute
from curlfx.passes.factors import Initialisation
from curlfx.recovery.overparam import Decay, Overparam
from curlfx.recovery.recipes import RECIPES, UNENLARGED, Recipe, find_recipe
from curlfx.run.config.presets import above
from curlfx.run.config.section import Count, Natural, Positive, Section, Share
from curlfx.run.config.training import TrainingConfig

DEFAULT: Literal["distillation"] = "distillation"
"""Recipe of a recovery."""


class RefineConfig(Section):
    """Refinement of the labels, after the training of the slim network: soft labels are trained along with it.

    What is not here (``batch_size``, ``momentum`` …) is as in the training before.

    Attributes:
        epochs: 0 leaves it out.
        lr: Peak learning rate of the network.
        label_lr: Learning rate of the soft labels.
        distillation: Weight of the distance to the soft labels; the rest is cross-entropy with the data's own.
        expand: Refine on every training image in six versions.
    """

    epochs: Natural = RECIPES[DEFAULT].refine.epochs
    lr: Positive = RECIPES[DEFAULT].refine.lr
    label_lr: Annotated[float, Field(ge=0)] = RECIPES[DEFAULT].refine.label_lr
    distillation: Share = RECIPES[DEFAULT].refine.distillation
    expand: bool = RECIPES[DEFAULT].expand_refine


class OverparamConfig(TrainingConfig):
    """Training of the enlarged network, before that of the slim one.

    Attributes: as in `curlfx.recovery.Overparam`, and those of its training.
    """

    epochs: Natural = 0
    lr: Positive = UNENLARGED.train.lr
    distillation: Share = UNENLARGED.train.distillation
    temperature: Positive = UNENLARGED.train.temperature
    rate: Count = UNENLARGED.rate
    layers: Annotated[tuple[str, ...], Field(description="a list of names, like [layer4.*]")] = ()
    init: Initialisation = UNENLARGED.init
    compute: Compute = UNENLARGED.compute
    similarity: Annotated[float, Field(ge=0)] | None = UNENLARGED.similarity
    decay: Decay = UNENLARGED.decay
    frozen_epochs: Natural | None = UNENLARGED.frozen_epochs
    merge_every: Natural = 0

    @field_validator("layers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _together(self) -> Self:
        try:
            self.of(seed=0, device="auto")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def of(self, *, seed: int, device: str) -> Overparam:
        """The same for `curlfx.recovery`. Raises: ConfigError for values that do not go together."""
        names = [field.name for field in fields(Overparam) if field.name != "train"]
        own = {name: getattr(self, name) for name in names}
        return Overparam(self.settings(seed=seed, device=device), **own)


RecipeName = Literal["distillation", "curl", "curl-large", "overparam"]


class RecoveryConfig(TrainingConfig):
    """Training of the slim network, by default with the dense one as its teacher.

    Attributes:
        recipe: Where every other key of this section takes its default from, as in `curlfx.recovery.RECIPES`; or
            ``[overparam, ONE OF THE OTHERS]``.
        recalibrate_batches: Training batches on which BatchNorm's statistics are measured afresh before the training;
            0 keeps those of the dense network.
        distillation: Weight of the distillation loss; the rest is cross-entropy. 0 trains without a teacher.
        temperature: Softmax temperature of the distillation.
        mixup: a of ``lam ~ Beta(a, a)`` with which the images of a batch are blended; 0 does not.
        expand: Train on every training image in six versions.
        refine: Refinement of the labels after the training.
        overparam: Training of the enlarged network before it.
    """

    recipe: RecipeName | tuple[RecipeName, ...] = DEFAULT
    recalibrate_batches: Natural = 0
    epochs: Natural = 8
    lr: Positive = 0.02
    distillation: Share = 0.7
    temperature: Positive = 2.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    expand: bool = False
    refine: RefineConfig = RefineConfig()
    overparam: OverparamConfig = OverparamConfig()

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: object) -> object:
        """Take what is not given from the recipe; a name alone, or a list of names, is the recipe."""
        given = {"recipe": given} if isinstance(given, str | list | tuple) else given
        if not isinstance(given, dict):
            return given
        try:
            recipe = find_recipe(given.get("recipe", DEFAULT))
        except (ConfigError, TypeError):
            return given  # whatever is wrong with it is found with the other faults
        defaults = {name: getattr(recipe.train, name) for name in cls.model_fields if hasattr(recipe.train, name)}
        refine = {name: getattr(recipe.refine, name) for name in RefineConfig.model_fields if name != "expand"}
        enlarged = {
            name: getattr(recipe.overparam if hasattr(recipe.overparam, name) else recipe.overparam.train, name)
            for name in OverparamConfig.model_fields
        }
        parts: dict[str, Any] = {"refine": {**refine, "expand": recipe.expand_refine}, "overparam": enlarged}
        for name, of_recipe in parts.items():
            section = given.get(name, {})
            parts[name] = above(section, of_recipe) if isinstance(section, Mapping) else section
        return {**defaults, "expand": recipe.expand, **given, **parts}

    @field_validator("recipe")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        try:
            find_recipe(value)
        except ConfigError as error:
            raise ValueError(str(error).partition(": ")[2]) from error
        return value

    def of(self, *, seed: int, device: str) -> Recipe:
        """The same for `curlfx.recovery`. Raises: ConfigError for values that do not go together."""
        train = self.settings(seed=seed, device=device)
        changed = self.refine.model_dump(exclude={"expand"})
        refine = replace(train, **changed, mixup=0.0, temperature=1.0, warmup_epochs=0.0)
        enlarged = self.overparam.of(seed=seed, device=device)
        return Recipe(train, self.expand, refine, self.refine.expand, enlarged)
