"""Whether a network and a data set belong together: the image shape and the number of classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curlfx.errors import DataError, ModelError
from curlfx.sources.factory import describe
from curlfx.sources.source import DataSource

STATISTICS = ("running_mean", "running_var")


def check_fit(model: nn.Module, source: DataSource) -> None:
    """Run two blank images of the data's shape through the network, in eval mode.

    Raises: ModelError when the network does not take them, gives no class scores ``(N, K)`` or has a parameter that is
    not finite; DataError when it gives another number of scores than the data has classes.
    """
    scores = class_scores(model, source.shape)
    fault = not_finite(model)
    if fault is not None:
        raise ModelError(f"the network's {fault}; mend it, or give weights=FILE")
    if scores != source.num_classes:
        raise DataError(
            f"data {source.name} has {source.num_classes} classes, the head of the network gives {scores}; "
            f"give a network or weights for {source.num_classes} classes, or a factory that takes num_classes"
        )


def not_finite(model: nn.Module) -> str | None:
    """Return which weight or BatchNorm statistic holds NaN or infinite values, and how many; None: none does."""
    statistics = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith(STATISTICS))
    for name, tensor in (*model.named_parameters(), *statistics):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            return f"{name} holds NaN or infinite values ({bad} of {tensor.numel()})"
    return None


def class_scores(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return how many class scores the network gives for an image of ``shape`` ``(C, H, W)``. Raises: ModelError."""
    reference = next(model.parameters(), torch.empty(0))
    example = torch.zeros(2, *shape, device=reference.device, dtype=reference.dtype)
    training = model.training
    try:
        with torch.no_grad():
            output: object = model.eval()(example)
    except Exception as cause:
        raise ModelError(
            f"the network does not take images of shape {shape} (C, H, W): {describe(cause)}; "
            "give a network or an image size that fit"
        ) from cause
    finally:
        model.train(training)
    if isinstance(output, Mapping):
        output = output.get("out", next(iter(output.values()), None))
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"the network gives {found} for two images, want class scores of shape (2, classes)")
    return output.shape[1]
