"""The loss of training and recovery, and what counts as a right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from curlfx.errors import DataError, ModelError
from curlfx.recovery.mixup import Blend
from curlfx.recovery.settings import TrainSettings


def logits_of(output: object) -> Tensor:
    """The class logits ``(B, K, …)`` of a network's output: the tensor, its ``"out"`` or ``"logits"``, or the first.

    Raises: ModelError when there is no floating-point tensor of two or more axes in front.
    """
    if isinstance(output, Mapping) and output:
        named = [output[key] for key in ("out", "logits") if key in output]
        return logits_of(named[0] if named else next(iter(output.values())))
    if isinstance(output, Sequence) and not isinstance(output, str) and output:
        return logits_of(output[0])
    if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 2:
        return output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(f"the network returns {shape}; want class logits (B, K, …), alone or first among its outputs")


def supervised(logits: Tensor, labels: Tensor, settings: TrainSettings, blend: Blend | None = None) -> Tensor:
    """Mean cross-entropy, a scalar; of mixed images ``lam * CE(labels) + (1 - lam) * CE(labels of their partners)``.

    Shapes: logits ``(B, K, …)``; labels ``(B, …)`` class numbers or ``(B, K, …)`` probabilities.
    """
    loss = functional.cross_entropy(precise(logits), labels, label_smoothing=settings.label_smoothing)
    if blend is None:
        return loss
    other = functional.cross_entropy(precise(logits), blend.labels, label_smoothing=settings.label_smoothing)
    return blend.share * loss + (1.0 - blend.share) * other


def distilled(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean KL(teacher || student)`` of the softmaxes at temperature T, a scalar.

    Shapes: both ``(B, K, …)``; the mean runs over everything but K.
    Source: Hinton et al., arXiv:1503.02531; weights as in CURL, arXiv:1911.08114.
    """
    student_log = functional.log_softmax(precise(logits) / temperature, dim=1)
    teacher_log = functional.log_softmax(precise(teacher) / temperature, dim=1)
    return functional.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(1).mean() * temperature**2


def drawn_to(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean KL(student || soft labels)`` of the softmaxes at temperature T, a scalar; the student comes first.

    Its gradient to the soft labels is ``T / B * (softmax(soft / T) - softmax(logits / T))``.

    Shapes: both ``(B, K)``.
    Source: label refinement of CURL, arXiv:1911.08114.
    """
    student_log = functional.log_softmax(precise(logits) / temperature, dim=1)
    soft_log = functional.log_softmax(soft.to(student_log.dtype) / temperature, dim=1)
    return functional.kl_div(soft_log, student_log, reduction="none", log_target=True).sum(1).mean() * temperature**2


def loss_of(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, settings: TrainSettings, blend: Blend | None = None
) -> Tensor:
    """``alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy``; the latter alone without a teacher."""
    if teacher is None:
        return supervised(logits, labels, settings, blend)
    return _weighed(distilled(logits, teacher, settings.temperature), logits, labels, settings, blend)


def refining_loss(logits: Tensor, labels: Tensor, soft: Tensor, settings: TrainSettings) -> Tensor:
    """``alpha * T^2 * KL(student || soft labels) + (1 - alpha) * cross-entropy``.

    Shapes: logits and soft labels ``(B, K)``. Raises: DataError for other shapes.
    """
    if soft.shape != logits.shape:
        raise DataError(f"soft labels of shape {tuple(soft.shape)} beside logits {tuple(logits.shape)}: want the same")
    return _weighed(drawn_to(logits, soft, settings.temperature), logits, labels, settings, None)


def _weighed(soft: Tensor, logits: Tensor, labels: Tensor, settings: TrainSettings, blend: Blend | None) -> Tensor:
    alpha = settings.distillation
    loss = alpha * soft
    return loss if alpha == 1.0 else loss + (1.0 - alpha) * supervised(logits, labels, settings, blend)


def precise(values: Tensor) -> Tensor:
    """``values``, half precision as float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Right answers (a scalar tensor, not synchronised) and answers asked for.

    Shapes: as for `supervised`; with dense labels every position is an answer.
    """
    wanted = labels.argmax(1) if labels.is_floating_point() else labels
    return (logits.argmax(1) == wanted).sum(), wanted.numel()


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Refuse labels that do not fit the logits, before they turn into an out-of-range read on the device.

    Raises: DataError naming shapes or the offending class number.
    """
    classes = logits.shape[1]
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise DataError(f"labels of shape {tuple(labels.shape)}: want probabilities {tuple(logits.shape)}")
        return
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} beside logits {tuple(logits.shape)}: want one per image"
        )
    if labels.numel() and (int(labels.max()) >= classes or int(labels.min()) < 0):
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the network has {classes} classes; "
            "want class numbers from 0, or a network with as many outputs as the data has classes"
        )
