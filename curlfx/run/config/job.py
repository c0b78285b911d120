"""The whole configuration, and what in it does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from curlfx.errors import ConfigError
from curlfx.planning.apply import Absorb
from curlfx.planning.choose import RANKINGS, SOLVERS, Allocation
from curlfx.planning.price import Priced
from curlfx.run.config.gradual import GradualConfig, without_teacher
from curlfx.run.config.outcome import BenchConfig, ExportConfig
from curlfx.run.config.presets import PresetName, with_preset
from curlfx.run.config.recovery import RecoveryConfig
from curlfx.run.config.search import SearchConfig
from curlfx.run.config.section import Count, FilePath, Natural, Section
from curlfx.run.config.target import TargetConfig
from curlfx.run.config.training import TrainingConfig

PUBLISHED = "default"
MOST_NAME = 100
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


class RunConfig(Section):
    """The whole job.

    Attributes:
        preset: Where keys that are not given take their values from, as in `curlfx.run.config.presets.PRESETS`.
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

    preset: PresetName = "default"
    name: (
        Annotated[
            str, Field(pattern=NAME, max_length=MOST_NAME, description="letters, digits, '.', '_' and '-', 100 at most")
        ]
        | None
    ) = None
    model: str = "curlfx:digits"
    weights: str | None = None
    new_head: bool = False
    data: str = "digits"
    out: FilePath | None = None
    resume: FilePath | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: object) -> object:
        return with_preset(given)

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
            f"allocation={given.get('allocation')}": given.get("allocation") not in (None, *RANKINGS),
            "per=latency": given.get("per") == "latency",
            "iterative_steps": given.get("iterative_steps", 1) > 1,
            "absorb_bias": given.get("absorb_bias", "none") != "none",
            "search.enabled": "search" in given and given["search"].enabled,
        }
        for name, found in wrong.items():
            if found:
                raise ValueError(f"pruning while training does not go with {name}; leave out one of the two")
        if "recovery" in given:
            without_teacher(given["recovery"])
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
    def directory_name(self) -> str:
        """What the run directory is called before its number: the name, or the model's as far as a folder can be."""
        last = self.model.rpartition(":")[2]
        return self.name or "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in last)[-MOST_NAME:]

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
