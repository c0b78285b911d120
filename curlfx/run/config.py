"""The whole job as one checked value: defaults, a YAML file, and ``key=value`` overrides on top.

Source: keys follow the field: Torch-Pruning's argument names, Ultralytics' overrides, Olive's resolved file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """A part of the configuration: immutable, and without room for a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class TargetConfig(Section):
    """What the slim network must reach: exactly one of the two.

    Attributes:
        macs: Multiply-adds for one image: an absolute number, or a share of the dense network like ``"50%"``.
        params: Number of parameters, likewise.
    """

    macs: int | str | None = None
    params: int | str | None = None

    @field_validator("macs", "params", mode="before")
    @classmethod
    def _amount(cls, value: object) -> object:
        if value is None:
            return None
        share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(value))
        if share is not None and 0 < float(share[1]) <= 100:
            return f"{share[1]}%"
        try:
            number = float(str(value))  # YAML reads 1e6 as text
        except ValueError:
            number = 0.0
        if number >= 1 and number.is_integer():
            return int(number)
        raise ValueError("want a share above 0% and at most 100%, like 50%, or a whole number of at least 1")

    @model_validator(mode="after")
    def _one(self) -> TargetConfig:
        if (self.macs is None) == (self.params is None):
            raise ValueError("want exactly one of macs and params")
        return self

    def as_mapping(self) -> dict[str, int | str]:
        """The form that planning takes, like ``{"macs": "50%"}``."""
        pairs = {"macs": self.macs, "params": self.params}
        return {key: value for key, value in pairs.items() if value is not None}


class TrainingConfig(Section):
    """One training: stochastic gradient descent with momentum, linear warm-up and a cosine to zero.

    Attributes:
        epochs: Passes over the training images; 0 leaves the stage out.
        lr: Peak learning rate.
        batch: Images in a step.
        momentum: Of SGD (Nesterov).
        weight_decay: L2 penalty on the weights.
        warmup_epochs: Epochs, also in fractions, of linear growth of the learning rate from zero.
        label_smoothing: Share of the target probability spread over all classes.
        ema: Decay of the running average of the weights that is kept in the end; 0 keeps the last weights.
        amp: Compute in a shorter float type (bfloat16 on a CPU).
        channels_last: Memory layout with channels innermost (the faster one for most convolutions).
        checkpoint_every: Epochs between two checkpoints.
    """

    epochs: Natural = 30
    lr: Positive = 0.1
    batch: Count = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup_epochs: Annotated[float, Field(ge=0)] = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    amp: bool = False
    channels_last: bool = True
    checkpoint_every: Count = 1


class RecoveryConfig(TrainingConfig):
    """Training of the slim network, by default with the dense one as its teacher.

    Attributes:
        kd: Weight of the distillation loss beside ``1 - kd`` of cross-entropy; 0 is plain training.
        temperature: Softmax temperature of the distillation.
    """

    epochs: Natural = 15
    lr: Positive = 0.05
    kd: Share = 0.5
    temperature: Positive = 4.0


class ExportConfig(Section):
    """The ONNX files.

    Attributes:
        opset: Operator set version; none means the exporter's own.
        dynamic_batch: Take any batch size (else the batch of the example only).
    """

    opset: Annotated[int, Field(ge=13, le=25)] | None = None
    dynamic_batch: bool = True


class BenchConfig(Section):
    """The measurement on onnxruntime, dense and slim interleaved.

    Attributes:
        rounds: Timed runs of each network.
        threads: Intra-op threads of onnxruntime.
        batch: Images in a run.
    """

    rounds: Annotated[int, Field(ge=10)] = 300
    threads: Count = 1
    batch: Count = 1


class RunConfig(Section):
    """The whole job.

    Attributes:
        name: Names the run directory ``runs/<name>-<number>``; none takes the model's name.
        model: MODEL, like ``torchvision:resnet50``, ``curlfx:resnet20`` or ``file.py:factory``.
        weights: ``.safetensors`` or weights-only ``.pth``; none trains on ``data`` first (or takes the model's own).
        data: DATA, like ``digits``, ``imagefolder:DIR`` or ``cifar10:DIR``.
        out: Run directory to make; none takes the next free one.
        resume: Directory of a run that was interrupted; takes everything else from there.
        seed: Of every random choice.
        device: ``auto`` (cuda when there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        threads: torch's intra-op threads; none leaves them as they are.
        image_size: Height and width that images are brought to; none takes the data's own.
        target: What the slim network must reach.
        importance: Criterion that ranks channels.
        proxy_images: Training images that data-driven criteria look at.
        allocation: ``global`` ranks all groups together; ``uniform`` takes the same share of each (a control).
        floor: Share of every group that always stays.
        round_to: Kept widths are multiples of this; ``auto`` goes by the network and the runtime.
        ignored_layers: Module or parameter names (with ``*``) that keep their channels.
        train: First training of the dense network, when there are no weights.
        recovery: Training of the slim network.
        export: ONNX files.
        bench: Latency measurement.
    """

    name: Annotated[str, Field(pattern=NAME, description="letters, digits, '.', '_' and '-'")] | None = None
    model: str = "curlfx:digits"
    weights: Path | None = None
    data: str = "digits"
    out: Path | None = None
    resume: Path | None = None
    seed: Natural = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:1")] = "auto"
    threads: Count | None = None
    image_size: Count | None = None
    target: TargetConfig = TargetConfig(macs="50%")
    importance: str = "kl"
    proxy_images: Count = 256
    allocation: Literal["global", "uniform"] = "global"
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.3
    round_to: Count | Literal["auto"] = "auto"
    ignored_layers: Annotated[tuple[str, ...], Field(description="a list of names, like [fc, layer4.*]")] = ()
    train: TrainingConfig = TrainingConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    export: ExportConfig = ExportConfig()
    bench: BenchConfig = BenchConfig()

    @field_validator("ignored_layers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, in YAML's own types; what ``config.yaml`` of a run directory holds."""
        return self.model_dump(mode="json", exclude={"resume"})
