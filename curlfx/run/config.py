"""The whole job as one checked value: defaults, a YAML file, and ``key=value`` overrides on top.

Source: keys follow the field: Torch-Pruning's argument names, Ultralytics' overrides, Olive's resolved file.
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from curlfx.cost import Cost
from curlfx.errors import ConfigError
from curlfx.gradual.schedule import Schedule
from curlfx.passes.expand_linear import Compute
from curlfx.passes.factors import Initialisation
from curlfx.planning.apply import Absorb
from curlfx.planning.choose import SOLVERS, Allocation
from curlfx.planning.price import Priced
from curlfx.planning.target import Amount, parse_targets
from curlfx.recovery.overparam import Decay, Overparam
from curlfx.recovery.recipes import RECIPES, UNENLARGED, Recipe, find_recipe
from curlfx.recovery.settings import Amp, MemoryFormat, TrainSettings
from curlfx.search.evolve import EvolutionSettings
from curlfx.search.proxy import ProxyName
from curlfx.search.sandwich import SandwichSettings

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
UNBOUNDED = Cost(
    macs=sys.maxsize, params=sys.maxsize, size_bytes=sys.maxsize, padded_macs=sys.maxsize, latency_ms=sys.float_info.max
)
"""Stands for the dense network until it is known: finds targets that are out of range for every network."""
PUBLISHED = "default"
DEFAULT: Literal["distillation"] = "distillation"
"""Recipe of a recovery."""
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """A part of the configuration: immutable, and without room for a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class TargetConfig(Section):
    """What the slim network must reach; every one that is given holds.

    Attributes:
        macs: Multiply-adds for one image: a share of the dense network (``"50%"``, ``0.5``) or a number (``"1.1G"``).
        params: Number of parameters, likewise.
        padded_macs: MACs with channel axes rounded up to the runtime's block, likewise.
        size_mb: Megabytes of weights, likewise.
        latency_ms: Milliseconds of one call, measured as ``bench`` says, likewise.
    """

    macs: Amount | None = None
    params: Amount | None = None
    padded_macs: Amount | None = None
    size_mb: Amount | None = None
    latency_ms: Amount | None = None

    @model_validator(mode="after")
    def _sound(self) -> TargetConfig:
        if not self.as_mapping():
            raise ValueError(f"want at least one of {', '.join(type(self).model_fields)}, like macs=50%")
        parse_targets(self.as_mapping(), UNBOUNDED)
        return self

    def as_mapping(self) -> dict[str, Amount]:
        """The form that planning takes, like ``{"macs": "50%"}``."""
        return self.model_dump(exclude_none=True)


class TrainingConfig(Section):
    """One training: stochastic gradient descent with momentum, linear warm-up and a cosine to zero.

    Attributes: as in `curlfx.recovery.settings.TrainSettings`.
    """

    epochs: Natural = 8
    batch_size: Count = 64
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    decay_vectors: bool = False
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip_gradient: Positive | None = None
    amp: Amp = "auto"
    memory_format: MemoryFormat = "auto"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            self.settings(seed=0, device="auto")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def settings(self, *, seed: int, device: str) -> TrainSettings:
        """The same for `curlfx.recovery`. Raises: ConfigError for values that do not go together."""
        names = {field.name for field in fields(TrainSettings)}
        return TrainSettings(**self.model_dump(include=names), seed=seed, device=device)


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
    similarity: Annotated[float, Field(ge=0)] = UNENLARGED.similarity
    decay: Decay = UNENLARGED.decay
    frozen_epochs: Natural = 0
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
        parts = {"refine": {**refine, "expand": recipe.expand_refine}, "overparam": enlarged}
        sections = {name: _above(given.get(name, {}), defaults) for name, defaults in parts.items()}
        return {**defaults, "expand": recipe.expand, **given, **sections}

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


def _above(given: object, defaults: dict[str, Any]) -> object:
    """Keys that are given on top of defaults."""
    return {**defaults, **given} if isinstance(given, dict) else given


def _without_teacher(recovery: RecoveryConfig) -> None:
    """Refuse a recovery with a teacher. Raises: ValueError."""
    enlarged, none = recovery.overparam, "recovery.overparam.distillation=0 and recovery.overparam.similarity=0"
    wrong = {
        "recovery.epochs=0 or recovery.distillation=0": recovery.epochs and recovery.distillation,
        "recovery.refine.epochs=0": recovery.refine.epochs,
        f"recovery.overparam.epochs=0, or {none}": enlarged.epochs and (enlarged.distillation or enlarged.similarity),
    }
    for wanted, found in wrong.items():
        if found:
            raise ValueError(
                "the dense network of a training that prunes is the slim one with zeros, which can teach it nothing; "
                f"want {wanted}"
            )


class GradualConfig(Section):
    """Channels go while the network is trained, as `curlfx.gradual.Schedule` says; training replaces the recovery.

    Attributes:
        interval: Epochs from one step to the next; ``auto`` makes ten steps; 0 prunes after the training instead.
        last: Last epoch after which channels may go; none takes three quarters of ``train.epochs``.
        amount: Coupled channels per step, or a share of all that can go; none goes an equal part of the way to the
            target at every step.
        floor: Share of every group, rounded up, that always stays.
        physical: Slim the network at every step, so that the rest of the training is cheaper; else zero weights.
    """

    interval: Natural | Literal["auto"] = 0
    last: Count | None = None
    amount: Amount | None = None
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    physical: bool = False

    @field_validator("amount")
    @classmethod
    def _some(cls, value: Amount | None) -> Amount | None:
        try:
            Schedule(1, 1, value, {"macs": "50%"})
        except ConfigError as error:
            raise ValueError(str(error).partition(": ")[2]) from error
        return value


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


class ExportConfig(Section):
    """The ONNX files.

    Attributes:
        opset: Operator set version; none takes the default of `curlfx.deploy.export_onnx`.
        dynamic_batch: Take any batch size (else that of the example only).
        single_file: Weights inside the file, as far as the 2 GB of one file reach.
        int8: Also write ``slim.int8.onnx``, quantised with the proxy images, and measure it beside the others.
    """

    opset: Annotated[int, Field(ge=18, le=23)] | None = None
    dynamic_batch: bool = True
    single_file: bool = True
    int8: bool = False


class BenchConfig(Section):
    """The measurement on onnxruntime, dense and slim interleaved.

    Attributes: as in `curlfx.deploy.BenchSettings`.
    """

    batch_size: Count = 1
    threads: Count = 1
    provider: str = "cpu"
    rounds: Annotated[int, Field(ge=2)] = 40
    runs: Count = 5
    warmup: Natural = 10
    max_seconds: Positive | None = 120.0


class RunConfig(Section):
    """The whole job.

    Attributes:
        name: Names the run directory ``runs/<name>-<number>``; none takes the model's name.
        model: MODEL, like ``torchvision:resnet50``, ``curlfx:resnet20`` or ``file.py:factory``.
        weights: ``.safetensors`` or weights-only ``.pth``, or ``default`` (published); none trains on ``data``.
        new_head: Take all weights but those of a head made for other classes, and train on ``data``.
        data: DATA, like ``digits``, ``imagefolder:DIR`` or ``cifar10:DIR``.
        out: Run directory to make; none takes the next free one.
        resume: Directory of a run that was interrupted; takes everything else from there.
        seed: Of every random choice.
        device: ``auto`` (cuda when there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        threads: torch's intra-op threads; none leaves them as they are.
        limit: Images per split, every class as often as possible; none takes all.
        train_limit: The same for the training images alone.
        image_size: Height and width that images are brought to; none takes what the network was made for.
        target: What the slim network must reach.
        importance: Criterion that ranks channels.
        divergence: How ``kl`` compares predictions: ``softmax``, ``bernoulli`` (multi-label heads), ``embedding``, or
            ``auto``: bernoulli where the network ends in a sigmoid, softmax elsewhere.
        proxy_images: Training images that data-driven criteria look at.
        allocation: ``global`` ranks all groups together; ``uniform`` takes the same share of each (a control);
            ``knapsack`` chooses the widths that keep the largest sum of scores, ``greedy`` the same step by step (a
            control). None takes ``knapsack`` for a latency and ``global`` for everything else.
        floor: Share of every group that always stays.
        round_to: Kept widths are multiples of this; ``auto`` goes by the network and the runtime.
        per: Scores are divided by what a channel costs: nothing (``channel``), its ``macs``, ``padded_macs`` or, where
            a latency is the target, ``latency``; ``auto`` takes ``macs`` for ``kl`` ranked globally to reach MACs.
        latency_probes: Narrow networks that are measured to know what widths cost in milliseconds.
        iterative_steps: Channels go in so many equal steps, scored again before each.
        absorb_bias: Biases take over what removed channels would still emit: ``none``, ``exact`` or ``mean``.
        ignored_layers: Module or parameter names (with ``*``) that keep their channels.
        train: First training of the dense network, when there are no weights.
        search: Search for the widths.
        recovery: Training of the slim network.
        gradual: Pruning while the network is trained.
        export: ONNX files.
        bench: Latency measurement.
    """

    name: Annotated[str, Field(pattern=NAME, description="letters, digits, '.', '_' and '-'")] | None = None
    model: str = "curlfx:digits"
    weights: str | None = None
    new_head: bool = False
    data: str = "digits"
    out: Path | None = None
    resume: Path | None = None
    seed: Natural = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:1")] = "auto"
    threads: Count | None = None
    limit: Count | None = None
    train_limit: Count | None = None
    image_size: Count | None = None
    target: TargetConfig = TargetConfig(macs="50%")
    importance: str = "kl"
    divergence: Literal["auto", "softmax", "bernoulli", "embedding"] = "auto"
    proxy_images: Count = 256
    allocation: Allocation | None = None
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.3
    round_to: Count | Literal["auto"] = "auto"
    per: Priced | Literal["auto"] = "auto"
    latency_probes: Annotated[int, Field(ge=3)] = 24
    iterative_steps: Count = 1
    absorb_bias: Absorb = "none"
    ignored_layers: Annotated[tuple[str, ...], Field(description="a list of names, like [fc, layer4.*]")] = ()
    train: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    gradual: GradualConfig = GradualConfig()
    export: ExportConfig = ExportConfig()
    bench: BenchConfig = BenchConfig()

    @field_validator("ignored_layers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("per")
    @classmethod
    def _priced(cls, value: str, others: ValidationInfo) -> str:
        target, allocation = others.data.get("target"), others.data.get("allocation")
        if value == "latency" and target is not None and target.latency_ms is None:
            raise ValueError("needs a latency that is measured: give target.latency_ms too")
        if value not in ("auto", "channel") and allocation in SOLVERS:
            raise ValueError(f"allocation={allocation} weighs costs itself; leave one of the two out")
        return value

    @field_validator("iterative_steps")
    @classmethod
    def _in_steps(cls, value: int, others: ValidationInfo) -> int:
        target, allocation = others.data.get("target"), others.data.get("allocation")
        if value > 1 and target is not None and target.latency_ms is not None:
            raise ValueError("a latency is met by measuring, in one step; leave it out")
        if value > 1 and allocation in SOLVERS:
            raise ValueError(f"allocation={allocation} chooses all widths in one step; leave one of the two out")
        return value

    @field_validator("gradual")
    @classmethod
    def _goes_with_the_rest(cls, value: GradualConfig, others: ValidationInfo) -> GradualConfig:
        given = others.data
        if value.interval == 0 or not {"train", "target"} <= given.keys():
            return value
        wrong = {
            "train.epochs=0": given["train"].epochs == 0,
            "train.ema_decay": given["train"].ema_decay is not None,
            "divergence": given.get("divergence", "auto") != "auto",
            f"allocation={given.get('allocation')}": given.get("allocation") not in (None, "global"),
            f"per={given.get('per')}": given.get("per", "auto") not in ("auto", "channel"),
            "iterative_steps": given.get("iterative_steps", 1) > 1,
            "absorb_bias": given.get("absorb_bias", "none") != "none",
            "search.enabled": "search" in given and given["search"].enabled,
        }
        for name, found in wrong.items():
            if found:
                raise ValueError(f"pruning while training does not go with {name}; leave out one of the two")
        if "recovery" in given:
            _without_teacher(given["recovery"])
        return value

    @field_validator("search")
    @classmethod
    def _alone(cls, value: SearchConfig, others: ValidationInfo) -> SearchConfig:
        if not value.enabled:
            return value
        for name in ("allocation", "iterative_steps", "per", "floor", "round_to"):
            default = cls.model_fields[name].default
            if others.data.get(name, default) != default:
                own = {"floor": ", or want search.least", "round_to": ", or want search.divisor"}.get(name, "")
                raise ValueError(f"a search chooses all widths itself; leave out {name}={others.data[name]}{own}")
        if value.start != "dense" and others.data.get("absorb_bias") != "none":
            raise ValueError(f"start={value.start}: biases are absorbed into dense weights only; want start=dense")
        return value

    @property
    def weights_file(self) -> Path:
        """The file that ``weights`` names. Raises: ConfigError when it names none."""
        if self.weights is None or self.weights == PUBLISHED:
            raise ConfigError(f"weights = {self.weights}: want a file")
        return Path(self.weights)

    @property
    def expands(self) -> bool:
        """Whether the recovery wants training images in six versions."""
        recovery = self.recovery
        return recovery.expand or (recovery.refine.epochs > 0 and recovery.refine.expand)

    @property
    def trains_first(self) -> bool:
        """Whether the dense network is trained before anything else."""
        return self.train.epochs > 0 and (self.weights is None or self.new_head or self.gradual.interval != 0)

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, in YAML's own types; what ``config.yaml`` of a run directory holds."""
        return self.model_dump(mode="json", exclude={"resume"})
