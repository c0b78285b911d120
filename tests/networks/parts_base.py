"""What the parts of composed networks share: shapes, options, layers in one, two and three dimensions."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS", "CONVOLUTIONS", "EPSILON", "NORMS", "TRANSPOSED", "LastNorm", "Map", "Part", "Tokens", "Wrapped",
    "aligned", "choice", "convolution", "divisor", "layer",
]  # fmt: skip

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE: dict[int, type[nn.Module]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

# Of normalisations over few numbers: with 1e-5 a deep chain of them amplifies float32 round-off past any tolerance.
EPSILON = 0.1


@dataclass(frozen=True)
class Map:
    """Shape of a feature map ``(N, channels, *size)``."""

    channels: int
    size: tuple[int, ...]

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @property
    def pixels(self) -> int:
        """Product of the spatial sizes."""
        return prod(self.size)

    @property
    def even(self) -> bool:
        """Whether every spatial axis can be halved and still be two pixels long."""
        return all(size % 2 == 0 and size >= 4 for size in self.size)

    def of(self, channels: int) -> "Map":
        """The same space with other channels."""
        return replace(self, channels=channels)

    def halved(self, channels: int | None = None) -> "Map":
        """Half the size along every axis."""
        return Map(channels or self.channels, tuple(size // 2 for size in self.size))


@dataclass(frozen=True)
class Tokens:
    """Shape of a sequence ``(N, extra + prod(grid), channels)``; class and register tokens come first."""

    channels: int
    grid: tuple[int, ...]
    extra: int = 0

    @property
    def count(self) -> int:
        """All tokens."""
        return self.extra + prod(self.grid)


def choice(*values: Any) -> Any:
    """A field of a part that takes one of some values; the first is the default, and the simplest."""
    return field(default=values[0], metadata={"choices": values})


@dataclass(frozen=True, repr=False)
class Part:
    """One block of a composed network; prints as the code that makes it, without what is default."""

    dims: ClassVar[tuple[int, ...]] = (2, 1, 3)

    def build(self, shape: Any) -> tuple[nn.Module, Any]:
        """The block for an input of this shape, and the shape it puts out."""
        raise NotImplementedError

    @classmethod
    def options(cls) -> dict[str, tuple[Any, ...]]:
        """The values that every field may take."""
        return {one.name: one.metadata["choices"] for one in fields(cls)}

    def kinds(self) -> list[str]:
        """What the part adds to the count of kinds: its name, and that with every option that is a word or a flag."""
        name = type(self).__name__
        chosen = {
            key: getattr(self, key) for key, values in self.options().items() if key not in {"norm", "activation"}
        }
        return [name, *(f"{name}.{key}={value}" for key, value in chosen.items() if isinstance(value, str | bool))]

    def __repr__(self) -> str:
        changed = [
            (one.name, getattr(self, one.name)) for one in fields(self) if getattr(self, one.name) != one.default
        ]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a counterexample."""
        printer.text(repr(self))


class Wrapped(nn.Module):
    """A function of some modules and a feature."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


class LastNorm(nn.Module):
    """LayerNorm over the channels of a feature map, by permuting them to the end and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        space = range(2, x.ndim)
        return self.norm(x.permute(0, *space, 1)).permute(0, x.ndim - 1, *range(1, x.ndim - 1))


def divisor(channels: int, wanted: int) -> int:
    """The largest divisor of `channels` up to `wanted`."""
    return max(number for number in range(1, wanted + 1) if channels % number == 0)


NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "batch": lambda dims, width: BATCH[dims](width),
    "none": lambda dims, width: nn.Identity(),
    "instance": lambda dims, width: INSTANCE[dims](width, eps=EPSILON, affine=True, track_running_stats=width % 2 == 0),
    "group": lambda dims, width: nn.GroupNorm(divisor(width, 3), width, eps=EPSILON),
    "layer": lambda dims, width: LastNorm(width),
    "whole": lambda dims, width: nn.GroupNorm(1, width, eps=EPSILON),
}
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(inplace=True),
    "sigmoid": lambda width: nn.Sigmoid(),
    "gelu": lambda width: nn.GELU(),
    "hardswish": lambda width: nn.Hardswish(),
    "prelu": nn.PReLU,
    "none": lambda width: nn.Identity(),
}


def convolution(
    dims: int, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = True
) -> nn.Module:
    """A bare convolution with "same" padding."""
    return CONVOLUTIONS[dims](inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def layer(
    dims: int, inputs: int, outputs: int, part: Any, kernel: int = 3, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, normalisation and activation, by the fields ``norm`` and ``activation`` of a part that has them."""
    norm, activation = getattr(part, "norm", "batch"), getattr(part, "activation", "relu")
    return nn.Sequential(
        convolution(dims, inputs, outputs, kernel, stride=stride, groups=groups, bias=norm != "batch"),
        NORMS[norm](dims, outputs),
        ACTIVATIONS[activation](outputs),
    )


def aligned(shape: Map, multiple: int) -> tuple[nn.Module, Map]:
    """A layer that makes the channels a multiple: nothing where they are, else a 1x1 convolution."""
    if shape.channels % multiple == 0:
        return nn.Identity(), shape
    wanted = max(multiple, shape.channels // multiple * multiple)
    return nn.Sequential(convolution(shape.dims, shape.channels, wanted, 1), nn.ReLU()), shape.of(wanted)


def after(first: nn.Module, then: nn.Module) -> nn.Module:
    """Two modules in a row, without a container where the first does nothing."""
    return then if isinstance(first, nn.Identity) else nn.Sequential(first, then)


def ramp(*size: int) -> Tensor:
    """Numbers that differ, in [-1, 1]."""
    return torch.linspace(-1, 1, prod(size)).mul(3).sin().reshape(size)
