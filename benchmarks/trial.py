"""What the benchmark programs and the tests share: random statistics, random keep sets, relative error."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["PrunableGroup", "flatten_outputs", "random_keep", "randomise", "relative_error"]


class PrunableGroup(Protocol):
    """The part of a coupling group that a keep set depends on.; every block keeps the same number of channels."""

    @property
    def id(self) -> str:
        """Name of the group."""

    @property
    def width(self) -> int:
        """Number of coupled channels."""

    @property
    def blocks(self) -> np.ndarray | None:
        """Block number of every channel."""


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every normalisation random statistics and affine parameters, and every vector or constant parameter noise.

    At initialisation a normalisation is the identity, biases are zero and layer scales are constant, and a wrong
    channel order is invisible; after this call no two channels of a network are alike. Magnitudes stay near 1, so
    that activations neither vanish nor explode.

    Args:
        module: Changed in place.
        seed: Of a private generator; the global one is left alone.

    Returns:
        The same module.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).mul(high - low).add(low).to(like.dtype)

    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.rpartition(".")[2] == "running_mean":
                buffer.copy_(uniform(buffer, -0.3, 0.3))
            elif name.rpartition(".")[2] == "running_var":
                buffer.copy_(uniform(buffer, 0.5, 2.0))
        for name, parameter in module.named_parameters():
            if name.rpartition(".")[2] == "weight" and parameter.ndim <= 1:
                parameter.copy_(uniform(parameter, 0.6, 1.4))
            elif parameter.ndim <= 1:
                parameter.copy_(uniform(parameter, -0.2, 0.2))
            elif parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.copy_(uniform(parameter, 0.6, 1.4))
    return module


def random_keep(groups: Sequence[PrunableGroup], keep_ratio: float = 0.5, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """A random keep set: of every group (of every block of a group) the same share of channels, at least one.

    Args:
        groups: Coupling groups.
        keep_ratio: In (0, 1]: share of the channels that stays, rounded up.
        seed: Of a private generator.

    Returns:
        Kept channels per group, increasing; groups that stay whole are left out.
    """
    generator = np.random.default_rng(seed)
    keep: dict[str, tuple[int, ...]] = {}
    for group in groups:
        blocks = np.zeros(group.width, dtype=np.int64) if group.blocks is None else np.asarray(group.blocks)
        numbers, sizes = np.unique(blocks, return_counts=True)
        count = max(1, int(np.ceil(keep_ratio * int(sizes.min()))))
        if count == sizes.min() == sizes.max():
            continue
        kept = [generator.choice(np.flatnonzero(blocks == number), count, replace=False) for number in numbers]
        keep[group.id] = tuple(int(channel) for channel in np.sort(np.concatenate(kept)))
    return keep


def flatten_outputs(output: object) -> list[Tensor]:
    """All tensors of a (nested) output, dictionaries in key order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for key in sorted(output) for tensor in flatten_outputs(output[key])]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for item in output for tensor in flatten_outputs(item)]
    return []


def relative_error(actual: object, expected: object) -> float:
    """Largest absolute difference of two (nested) outputs over the largest absolute value of the expected one.

    Returns:
        The worst over the outputs; infinite where shapes or counts differ or a value is not finite.
    """
    left, right = ([tensor.detach() for tensor in flatten_outputs(output)] for output in (actual, expected))
    if not right or len(left) != len(right):
        return float("inf")
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        if one.shape != other.shape or not bool(torch.isfinite(other).all()) or not bool(torch.isfinite(one).all()):
            return float("inf")
        scale = float(other.abs().max()) if other.numel() else 0.0
        gap = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        worst = max(worst, gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf")))
    return worst
