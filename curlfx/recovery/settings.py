"""What a training needs to be told, whether it makes a dense network or recovers a slim one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from curlfx.errors import ConfigError

Amp = Literal["auto", "off", "bfloat16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (0, math.inf),
    "lr": (0.0, math.inf),
    "batch_size": (1, math.inf),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "warmup_epochs": (0.0, math.inf),
    "label_smoothing": (0.0, 1.0),
    "distillation": (0.0, 1.0),
    "temperature": (1e-3, math.inf),
    "mixup": (0.0, math.inf),
    "label_lr": (0.0, math.inf),
    "ema_decay": (0.0, 1.0),
    "clip_gradient": (0.0, math.inf),
}
_CHOICES = {"amp": ("auto", "off", "bfloat16"), "memory_format": ("auto", "contiguous", "channels_last")}


@dataclass(frozen=True)
class TrainSettings:
    """SGD with Nesterov momentum, linear warm-up and a cosine to zero, both per iteration.

    Attributes:
        epochs: Passes over the training images; 0 trains nothing.
        batch_size: Images per step; whoever makes the loader reads it, the loop itself does not.
        lr: Peak learning rate.
        momentum: Of SGD, in [0, 1].
        nesterov: Look ahead along the momentum.
        weight_decay: L2 penalty.
        decay_vectors: Decay biases and normalisation parameters too (all tensors of fewer than two axes).
        warmup_epochs: Length of the linear rise of the learning rate; may be a fraction of an epoch.
        label_smoothing: In [0, 1], of the cross-entropy.
        distillation: alpha in ``alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy``; counts only
            where a teacher is given. While soft labels Y are refined, the same for ``KL(student || Y)``.
        temperature: T of the distillation.
        mixup: a in ``lam ~ Beta(a, a)``, once per batch, for ``lam * images + (1 - lam) * the same in another order``;
            0 does not mix.
        label_lr: Learning rate of soft labels; counts only where there are some.
        ema_decay: Decay per step of an average of the weights that replaces them at the end; None keeps none.
        clip_gradient: Upper bound of the gradient's global L2 norm; None does not clip.
        amp: ``"bfloat16"`` autocast, ``"off"``, or ``"auto"``: bfloat16 where the device computes in it natively.
        memory_format: ``"channels_last"``, ``"contiguous"``, or ``"auto"``: channels last where the network accepts it.
        seed: Of everything random in the loop; the loader has its own.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …, or ``"auto"``: a GPU if there is one.

    Raises: ConfigError for a value out of range.
    Source: loss and recipe of CURL, arXiv:1911.08114; mixup of Zhang et al., arXiv:1710.09412.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_vectors: bool = False
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.7
    temperature: float = 2.0
    mixup: float = 0.0
    label_lr: float = 1.0
    ema_decay: float | None = None
    clip_gradient: float | None = None
    amp: Amp = "auto"
    memory_format: MemoryFormat = "auto"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise ConfigError(f"{name} = {value}: want a number in [{low}, {high}]")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: want one of {', '.join(choices)}")
        if self.warmup_epochs > self.epochs > 0:
            raise ConfigError(
                f"warmup_epochs = {self.warmup_epochs:g}: want at most epochs = {self.epochs}; the learning rate would "
                "never get to its peak"
            )
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov = true needs momentum above 0; set nesterov=false")

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the step numbered ``step`` from 0: a linear rise to ``lr``, then a cosine to 0."""
        total, rise = self.epochs * steps_per_epoch, self.warmup_epochs * steps_per_epoch
        if step < rise:
            return self.lr * (step + 1) / (math.floor(rise) + 1)
        done = min(1.0, (step - rise) / max(1.0, total - rise))
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * done))

    def differences(self, other: TrainSettings) -> list[str]:
        """Names of the fields in which the two differ, but for ``device`` (a run may resume elsewhere)."""
        names = [field.name for field in fields(self) if field.name != "device"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]
