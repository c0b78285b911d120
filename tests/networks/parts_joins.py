"""Parts of composed networks: where channels are joined, cut and reordered."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.parts_base import (
    TRANSPOSED,
    Map,
    Part,
    Wrapped,
    after,
    aligned,
    choice,
    convolution,
    layer,
    ramp,
)
from tests.networks.parts_convolution import ACTIVATION, NORM, WIDTHS


@dataclass(frozen=True, repr=False)
class Concat(Part):
    """Every layer reads all that came before (DenseNet)."""

    growth: int = choice(2, 1, 3)
    layers: int = choice(1, 2)
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        c = shape.channels
        layers = [layer(shape.dims, c + index * self.growth, self.growth, self) for index in range(self.layers)]

        def forward(x: Tensor, *parts: nn.Module) -> Tensor:
            for part in parts:
                x = torch.cat([x, part(x)], 1)
            return x

        return Wrapped(forward, *layers), shape.of(c + self.layers * self.growth)


@dataclass(frozen=True, repr=False)
class Branches(Part):
    """Parallel layers, concatenated, stacked and summed, or the largest of them."""

    width: int = choice(*WIDTHS)
    join: str = choice("cat", "stack", "max", "product")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        one = layer(dims, c, self.width, self)
        pool = getattr(functional, f"max_pool{dims}d")
        if self.join == "cat":
            other = layer(dims, c, 3, self, 1)
            return (
                Wrapped(lambda x, f, g: torch.cat([f(x), g(pool(x, 3, 1, 1))], 1), one, other),
                shape.of(self.width + 3),
            )
        other = layer(dims, c, self.width, self, 1)
        functions = {
            "stack": lambda x, f, g: torch.stack([f(x), g(x)]).sum(0),
            "max": lambda x, f, g: torch.maximum(f(x), g(x)),
            "product": lambda x, f, g: f(x) * torch.sigmoid(g(x)),
        }
        return Wrapped(functions[self.join], one, other), shape.of(self.width)


def _cut(channels: int, cut: str) -> list[int]:
    """Sizes of the pieces of `channels` (at least 3)."""
    if cut == "uneven":
        return [channels // 3, channels - channels // 3]
    if cut == "three":
        third = channels // 3
        return [third, third, channels - 2 * third]
    return [channels // 2] * 2


@dataclass(frozen=True, repr=False)
class Split(Part):
    """Split, change one or all pieces, and concatenate (Res2Net, CSP), add or multiply the pieces."""

    cut: str = choice("even", "uneven", "three", "chunk", "tensor_split")
    join: str = choice("cat", "hierarchy", "swap", "add")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        first, inside = aligned(shape, 1 if self.cut in {"uneven", "three"} and shape.channels >= 3 else 6)
        if self.join in {"add", "hierarchy"} and self.cut == "three":
            first, inside = aligned(shape, 3)
        if self.join in {"add", "hierarchy"} and self.cut == "uneven":
            first, inside = aligned(shape, 2)
        c = inside.channels
        sizes = [c // 2] * 2 if self.join in {"add", "hierarchy"} and self.cut == "uneven" else _cut(c, self.cut)

        def pieces(x: Tensor) -> tuple[Tensor, ...]:
            if self.cut == "chunk":
                return x.chunk(2, 1)
            if self.cut == "tensor_split":
                return torch.tensor_split(x, 2, dim=1)
            return torch.split(x, sizes[0] if self.cut == "even" else sizes, dim=1)

        layers = [layer(shape.dims, size, size, self) for size in sizes]

        def forward(x: Tensor, *parts: nn.Module) -> Tensor:
            found = list(pieces(x))
            if self.join == "cat":
                return torch.cat([found[0], *(part(one) for part, one in zip(parts[1:], found[1:], strict=True))], 1)
            if self.join == "swap":
                return torch.cat([parts[-1](found[-1]), *found[:-1]], 1)
            if self.join == "add":
                return sum((part(one) for part, one in zip(parts[1:], found[1:], strict=True)), found[0])
            for index in range(1, len(found)):
                found[index] = parts[index](found[index] + found[index - 1])
            return torch.cat(found, 1)

        out = sizes[0] if self.join == "add" else c
        return after(first, Wrapped(forward, *layers)), shape.of(out)


@dataclass(frozen=True, repr=False)
class Slices(Part):
    """Parts of the channels, read by slices."""

    how: str = choice("halves", "overlap", "narrow", "every", "index", "negative")
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        first, inside = aligned(shape, 2)
        c = inside.channels
        cut = c // 2
        body = layer(shape.dims, cut, cut, self)
        order = torch.arange(c - 1, -1, -2)
        functions = {
            "halves": lambda x, f: f(x[:, :cut]) + x[:, cut:],
            "overlap": lambda x, f: torch.cat([f(x[:, :cut]), x[:, c - cut - 1 :]], 1),
            "narrow": lambda x, f: f(x.narrow(1, 0, cut)) * torch.sigmoid(x.narrow(1, cut, cut)),
            "every": lambda x, f: f(x[:, ::2]) + x[:, 1::2],
            "index": lambda x, f: f(x[:, order]) + x[:, :cut],
            "negative": lambda x, f: torch.cat([x[:, -1:], f(x[:, -cut:])], 1),
        }
        outs = {"overlap": 2 * cut + 1, "negative": cut + 1}
        return after(first, Wrapped(functions[self.how], body)), shape.of(outs.get(self.how, cut))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel ``i * n + j`` goes to ``j * groups + i``."""
    size = x.shape
    return x.view(size[0], groups, size[1] // groups, *size[2:]).transpose(1, 2).reshape(size)


@dataclass(frozen=True, repr=False)
class Shuffle(Part):
    """Channel shuffle: after a layer, in ShuffleNet's unit of grouped layers, or in its second version's."""

    groups: int = choice(2, 3)
    unit: str = choice("plain", "module", "grouped", "halves")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        groups = 2 if self.unit == "halves" else self.groups
        first, inside = aligned(shape, groups)
        dims, c = shape.dims, inside.channels
        if self.unit == "plain":
            unit = Wrapped(lambda x, f: channel_shuffle(f(x), groups), layer(dims, c, c, self))
        elif self.unit == "module":
            unit = nn.Sequential(layer(dims, c, c, self), nn.ChannelShuffle(groups))
        elif self.unit == "grouped":
            squeeze, expand = (layer(dims, c, c, self, 1, groups=groups) for _ in range(2))
            depthwise = layer(dims, c, c, self, groups=c)
            unit = Wrapped(
                lambda x, f, g, h: torch.relu(x + h(g(channel_shuffle(f(x), groups)))), squeeze, depthwise, expand
            )
        else:
            branch = nn.Sequential(
                layer(dims, c // 2, c // 2, self, 1), layer(dims, c // 2, c // 2, self, groups=c // 2)
            )

            def halves(x: Tensor, f: nn.Module) -> Tensor:
                left, right = x.chunk(2, dim=1)
                return channel_shuffle(torch.cat([left, f(right)], 1), 2)

            unit = Wrapped(halves, branch)
        return after(first, unit), inside


@dataclass(frozen=True, repr=False)
class OptionA(Part):
    """Shortcut without parameters: every second pixel, channels padded with zeros (CIFAR ResNets)."""

    more: int = choice(2, 1, 3)
    sides: str = choice("both", "after", "before", "cat")
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        stride = 2 if shape.even else 1
        body = nn.Sequential(
            layer(shape.dims, shape.channels, shape.channels + self.more, self, stride=stride),
            convolution(shape.dims, shape.channels + self.more, shape.channels + self.more),
        )
        low = {"both": self.more // 2, "after": 0, "before": self.more, "cat": 0}[self.sides]
        every = (slice(None), slice(None), *(slice(None, None, stride) for _ in shape.size))

        def forward(x: Tensor, f: nn.Module) -> Tensor:
            short = x[every]
            if self.sides == "cat":
                zeros = x.new_zeros(short.shape[0], self.more, *short.shape[2:])
                return torch.relu(f(x) + torch.cat([short, zeros], 1))
            pads = [0, 0] * shape.dims + [low, self.more - low]
            return torch.relu(f(x) + functional.pad(short, pads))

        wide = shape.channels + self.more
        return Wrapped(forward, body), shape.halved(wide) if stride == 2 else shape.of(wide)


@dataclass(frozen=True, repr=False)
class Ghost(Part):
    """Half of the channels are made of the others by a cheap layer; the surplus is cut off (GhostNet)."""

    width: int = choice(*WIDTHS)
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        half = (self.width + 1) // 2
        primary = layer(shape.dims, shape.channels, half, self, 1)
        cheap = layer(shape.dims, half, half, self, groups=half)

        def forward(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
            y = f(x)
            return torch.cat([y, g(y)], 1)[:, : self.width]

        return Wrapped(forward, primary, cheap), shape.of(self.width)


class _Coordinates(nn.Module):
    def __init__(self, shape: Map, kind: str) -> None:
        super().__init__()
        self.channels = nn.Parameter(ramp(1, 2, *shape.size), requires_grad=kind == "parameter")
        if kind == "buffer":
            del self.channels
            self.register_buffer("channels", ramp(1, 2, *shape.size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.channels.expand(x.shape[0], *self.channels.shape[1:])], 1)


@dataclass(frozen=True, repr=False)
class Coordinates(Part):
    """Channels that no layer computes are concatenated: a buffer or a parameter, expanded (CoordConv)."""

    kind: str = choice("buffer", "parameter")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        return _Coordinates(shape, self.kind), shape.of(shape.channels + 2)


@dataclass(frozen=True, repr=False)
class Hourglass(Part):
    """Down, a layer, up, and the skip concatenated (U-Net) or added."""

    width: int = choice(*WIDTHS)
    up: str = choice("nearest", "linear", "transposed", "shuffle")
    join: str = choice("cat", "add")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        stride = 2 if shape.even else 1
        down = layer(dims, c, self.width, self, stride=stride)
        wide = c if self.join == "add" else 3
        up = self._up(shape, stride, wide)
        if self.join == "cat":
            return Wrapped(lambda x, f, g: torch.cat([x, g(f(x))], 1), down, up), shape.of(c + wide)
        return Wrapped(lambda x, f, g: x + g(f(x)), down, up), shape

    def _up(self, shape: Map, stride: int, wide: int) -> nn.Module:
        if self.up == "transposed":
            return TRANSPOSED[shape.dims](self.width, wide, stride, stride)
        if self.up == "shuffle" and shape.dims == 2:
            return nn.Sequential(convolution(2, self.width, wide * stride**2, 1), nn.PixelShuffle(stride))
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[shape.dims] if self.up == "linear" else "nearest"
        options = {"align_corners": False} if self.up == "linear" else {}
        upsample = nn.Upsample(scale_factor=float(stride), mode=mode, **options)
        return nn.Sequential(upsample, layer(shape.dims, self.width, wide, self))
