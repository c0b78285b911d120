"""Parts of composed networks: convolutions of every kind, residual bodies, shared weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.parts_base import (
    ACTIVATIONS,
    CONVOLUTIONS,
    NORMS,
    TRANSPOSED,
    Map,
    Part,
    Wrapped,
    after,
    aligned,
    choice,
    convolution,
    divisor,
    layer,
)

WIDTHS = (4, 2, 3, 5, 6)
NORM = tuple(NORMS)
ACTIVATION = tuple(ACTIVATIONS)


@dataclass(frozen=True, repr=False)
class Conv(Part):
    """One convolution; it may be dilated, or padded with reflections or around."""

    width: int = choice(*WIDTHS)
    kernel: int = choice(3, 1)
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)
    padding: str = choice("zeros", "dilated", "reflect", "circular", "replicate")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        body = layer(shape.dims, shape.channels, self.width, self, self.kernel)
        if self.kernel > 1 and self.padding != "zeros":
            options = {"dilation": 2} if self.padding == "dilated" else {"padding_mode": self.padding}
            size = 2 if self.padding == "dilated" else 1
            body[0] = CONVOLUTIONS[shape.dims](shape.channels, self.width, 3, padding=size, **options)
        return body, shape.of(self.width)


@dataclass(frozen=True, repr=False)
class Strided(Part):
    """Half the size: by stride, by pooling, or by reading every second pixel."""

    width: int = choice(*WIDTHS)
    how: str = choice("stride", "max", "average", "adaptive", "slice")
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        if not shape.even:
            return layer(shape.dims, shape.channels, self.width, self, 1), shape.of(self.width)
        if self.how == "stride":
            return layer(shape.dims, shape.channels, self.width, self, stride=2), shape.halved(self.width)
        body = layer(shape.dims, shape.channels, self.width, self)
        size = tuple(size // 2 for size in shape.size)
        every = (slice(None), slice(None), *(slice(None, None, 2) for _ in size))
        pools = {
            "max": lambda y: getattr(functional, f"max_pool{len(size)}d")(y, 2),
            "average": lambda y: getattr(functional, f"avg_pool{len(size)}d")(y, 2),
            "adaptive": lambda y: getattr(functional, f"adaptive_avg_pool{len(size)}d")(y, size),
            "slice": lambda y: y[every],
        }
        pool = pools[self.how]
        return Wrapped(lambda x, f: pool(f(x)), body), shape.halved(self.width)


@dataclass(frozen=True, repr=False)
class Grouped(Part):
    """A grouped convolution, or a bottleneck around one (ResNeXt)."""

    groups: int = choice(2, 3, 4)
    width: int = choice(2, 1, 3)
    bottleneck: bool = choice(False, True)
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, inner = shape.dims, self.groups * self.width
        if self.bottleneck:
            body = nn.Sequential(
                layer(dims, shape.channels, inner, self, 1),
                layer(dims, inner, inner, self, groups=self.groups),
                layer(dims, inner, shape.channels, self, 1),
            )
            return Wrapped(lambda x, f: x + f(x), body), shape
        first, inside = aligned(shape, self.groups)
        body = layer(dims, inside.channels, inner, self, groups=self.groups)
        return after(first, body), shape.of(inner)


@dataclass(frozen=True, repr=False)
class Depthwise(Part):
    """A depthwise convolution, with one or more outputs per channel, alone or followed by a pointwise one."""

    multiplier: int = choice(1, 2, 3)
    kernel: int = choice(3, 1)
    pointwise: bool = choice(False, True)
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        wide = shape.channels * self.multiplier
        body = layer(shape.dims, shape.channels, wide, self, self.kernel, groups=shape.channels)
        if not self.pointwise:
            return body, shape.of(wide)
        return nn.Sequential(body, convolution(shape.dims, wide, shape.channels, 1)), shape


@dataclass(frozen=True, repr=False)
class InvertedResidual(Part):
    """Expand, depthwise, project without activation (MobileNetV2)."""

    expansion: int = choice(2, 1, 3)
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, inner = shape.dims, shape.channels * self.expansion
        body = nn.Sequential(
            layer(dims, shape.channels, inner, self, 1),
            layer(dims, inner, inner, self, groups=inner),
            convolution(dims, inner, shape.channels, 1, bias=False),
            NORMS[self.norm](dims, shape.channels),
        )
        return Wrapped(lambda x, f: x + f(x), body), shape


@dataclass(frozen=True, repr=False)
class Residual(Part):
    """A body beside a shortcut: the identity, a 1x1 convolution, or one that halves the size."""

    width: int = choice(*WIDTHS)
    shortcut: str = choice("identity", "project", "downsample")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        if self.shortcut == "identity":
            body = nn.Sequential(layer(dims, c, self.width, self), layer(dims, self.width, c, self, 1))
            return Wrapped(lambda x, f: x + f(x), body), shape
        stride = 2 if self.shortcut == "downsample" and shape.even else 1
        body = nn.Sequential(
            layer(dims, c, self.width, self, stride=stride), layer(dims, self.width, self.width, self, 1)
        )
        shortcut = convolution(dims, c, self.width, 1, stride=stride, bias=False)
        out = shape.halved(self.width) if stride == 2 else shape.of(self.width)
        return Wrapped(lambda x, f, g: torch.relu(f(x) + g(x)), body, shortcut), out


@dataclass(frozen=True, repr=False)
class Transposed(Part):
    """Down and up again by a transposed convolution, joined with what came in."""

    width: int = choice(*WIDTHS)
    kind: str = choice("full", "depthwise", "grouped")
    join: str = choice("cat", "none", "add")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, stride = shape.dims, 2 if shape.even else 1
        width = shape.channels if self.join == "add" else self.width
        groups = {"full": 1, "depthwise": width, "grouped": divisor(width, 2)}[self.kind]
        down = layer(dims, shape.channels, width, self, stride=stride)
        up = TRANSPOSED[dims](width, width, stride, stride, groups=groups)
        joins = {
            "cat": (lambda x, f, g: torch.cat([x, g(f(x))], 1), shape.channels + width),
            "add": (lambda x, f, g: x + g(f(x)), width),
            "none": (lambda x, f, g: torch.relu(g(f(x))), width),
        }
        function, out = joins[self.join]
        return Wrapped(function, down, up), shape.of(out)


class _Tied(nn.Module):
    """One weight read by a convolution and, transposed, by its mirror image."""

    def __init__(self, shape: Map, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, shape.channels, *([1] * shape.dims)) * 0.5)
        self.dims = shape.dims

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(getattr(functional, f"conv{self.dims}d")(x, self.weight))
        return x + getattr(functional, f"conv_transpose{self.dims}d")(y, self.weight)


@dataclass(frozen=True, repr=False)
class Shared(Part):
    """Weights that are read more than once."""

    how: str = choice("twice", "siblings", "parameter", "mirror", "norm")
    width: int = choice(*WIDTHS)
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        if self.how == "twice":
            return Wrapped(lambda x, f: f(f(x)), layer(dims, c, c, self)), shape
        if self.how == "siblings":  # one layer on two features
            first = [layer(dims, c, self.width, self, kernel) for kernel in (1, 3)]
            both = layer(dims, self.width, c, self, 1)
            return Wrapped(lambda x, f, g, h: h(f(x)) + h(g(x)), *first, both), shape
        if self.how == "parameter":  # two layers with one weight and biases of their own
            one, other = layer(dims, c, c, self), layer(dims, c, c, self)
            other[0].weight = one[0].weight
            return Wrapped(lambda x, f, g: f(x) + g(torch.tanh(x)), one, other), shape
        if self.how == "norm":  # two layers, one normalisation
            one, other = layer(dims, c, self.width, self), layer(dims, c, self.width, self, 1)
            other[1] = one[1]
            return Wrapped(lambda x, f, g: torch.cat([f(x), g(x)], 1), one, other), shape.of(2 * self.width)
        return _Tied(shape, self.width), shape


class _Raw(nn.Module):
    """Parameters that belong to no layer, read by functions."""

    def __init__(self, shape: Map, width: int, how: str) -> None:
        super().__init__()
        self.dims, self.how = shape.dims, how
        ones = [1] * shape.dims
        if how == "convolution":
            self.weight = nn.Parameter(torch.randn(width, shape.channels, *ones) * 0.5)
        elif how == "matrix":
            self.weight = nn.Parameter(torch.randn(shape.channels, width) * 0.5)
        elif how == "product":
            self.weight = nn.Parameter(torch.randn(width, shape.channels) * 0.5)
        else:
            self.weight = nn.Parameter(torch.ones(shape.channels, *ones))
        self.offset = nn.Parameter(torch.zeros(1, shape.channels if how == "scale" else width, *ones))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "convolution":
            return torch.relu(getattr(functional, f"conv{self.dims}d")(x, self.weight) + self.offset)
        if self.how == "matrix":
            return torch.einsum("nc...,cd->nd...", x, self.weight) + self.offset
        if self.how == "product":
            mixed = torch.matmul(self.weight, x.flatten(2))
            return mixed.reshape(x.shape[0], self.weight.shape[0], *x.shape[2:]) + self.offset
        return x * self.weight + self.offset


@dataclass(frozen=True, repr=False)
class Raw(Part):
    """Parameters used outside modules: scales and offsets, a kernel, matrices."""

    how: str = choice("scale", "convolution", "matrix", "product")
    width: int = choice(*WIDTHS)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        return _Raw(shape, self.width, self.how), shape.of(shape.channels if self.how == "scale" else self.width)


@dataclass(frozen=True, repr=False)
class Norm(Part):
    """A normalisation and an activation without a layer before them."""

    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        return nn.Sequential(
            NORMS[self.norm](shape.dims, shape.channels), ACTIVATIONS[self.activation](shape.channels)
        ), shape
