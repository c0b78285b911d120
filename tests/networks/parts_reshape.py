"""Parts of composed networks: reshapes, permutes and products that mix axes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.parts_base import EPSILON, Map, Part, Wrapped, after, aligned, choice, convolution, layer
from tests.networks.parts_convolution import ACTIVATION, NORM, WIDTHS


@dataclass(frozen=True, repr=False)
class PixelShuffle(Part):
    """Four neighbouring channels become one channel of four pixels, or the other way round."""

    dims: ClassVar[tuple[int, ...]] = (2,)
    width: int = choice(3, 1, 2, 4)
    how: str = choice("shuffle", "unshuffle", "space_to_depth", "focus", "patches")
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        if self.how == "shuffle" or not shape.even:
            expand = convolution(2, shape.channels, 4 * self.width)
            return (
                Wrapped(lambda x, f: functional.avg_pool2d(functional.pixel_shuffle(f(x), 2), 2), expand),
                shape.of(self.width),
            )

        def space(x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)

        def focus(x: Tensor) -> Tensor:
            return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)

        def patches(x: Tensor) -> Tensor:
            return functional.unfold(x, 2, stride=2).view(x.shape[0], -1, x.shape[2] // 2, x.shape[3] // 2)

        gather = {
            "unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
            "space_to_depth": space,
            "focus": focus,
            "patches": patches,
        }[self.how]
        body = layer(2, 4 * shape.channels, self.width, self, 1)
        return Wrapped(lambda x, f: f(gather(x)), body), shape.halved(self.width)


@dataclass(frozen=True, repr=False)
class Bands(Part):
    """Channels cut into bands along a new axis and merged again, something in between."""

    bands: int = choice(2, 3)
    how: str = choice("gate", "mean", "transposed", "scale", "normalise", "mix", "sum", "stack", "flip")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        first, inside = aligned(shape, self.bands)
        c, n, dims = inside.channels, self.bands, shape.dims
        body = layer(dims, c, c, self)
        space = tuple(range(3, 3 + dims))
        mix = nn.Linear(n, n)

        def forward(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
            y = f(x)
            parts = y.unflatten(1, (n, c // n)) if self.how in {"gate", "sum"} else y.view(-1, n, c // n, *shape.size)
            if self.how == "gate":
                return (parts * parts.mean(space, keepdim=True).sigmoid()).flatten(1, 2)
            if self.how == "mean":  # over the bands: a mean over what may go
                return y + (parts - parts.mean(1, keepdim=True)).reshape(y.shape)
            if self.how == "transposed":
                return parts.transpose(1, 2).reshape(y.shape[0], c, *shape.size)
            if self.how == "scale":  # one number per band
                return (parts * g.weight[0].view(n, *([1] * (dims + 1)))).flatten(1, 2)
            if self.how == "normalise":
                return functional.normalize(parts, dim=2, eps=0.5).flatten(1, 2)
            if self.how == "mix":  # a matrix over bands
                return torch.relu(g(parts.movedim(1, -1))).movedim(-1, 1).reshape(y.shape)
            if self.how == "sum":
                return parts.sum(1)
            if self.how == "stack":
                one, *others = parts.unbind(1)
                return torch.stack([torch.relu(one), *others], 2).flatten(1, 2)
            return parts.flip(1).reshape(y.shape)

        out = inside.of(c // n) if self.how == "sum" else inside
        return after(first, Wrapped(forward, body, mix)), out


@dataclass(frozen=True, repr=False)
class ThroughLinear(Part):
    """Flatten to a linear layer and back to a feature map."""

    width: int = choice(3, 1, 2, 4)
    how: str = choice("unflatten", "view", "broadcast")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        flat = shape.channels * shape.pixels
        if self.how == "broadcast":
            linear = nn.Linear(flat, shape.channels)
            ones = [1] * shape.dims
            return Wrapped(lambda x, f: x + torch.relu(f(x.flatten(1))).view(-1, shape.channels, *ones), linear), shape
        size = tuple(2 if extent > 1 else 1 for extent in shape.size)
        out = Map(self.width, size)
        linear = nn.Linear(flat, self.width * out.pixels)
        if self.how == "view":
            return Wrapped(
                lambda x, f: torch.relu(f(x.reshape(x.shape[0], -1))).view(-1, *self._sizes(out)), linear
            ), out
        return Wrapped(lambda x, f: torch.relu(f(x.flatten(1)).unflatten(1, self._sizes(out))), linear), out

    def _sizes(self, out: Map) -> tuple[int, ...]:
        return (self.width, *out.size)


class _Last(nn.Module):
    """ConvNeXt's block: depthwise, channels last, LayerNorm, two linear layers, layer scale, residual."""

    def __init__(self, shape: Map, hidden: int, how: str) -> None:
        super().__init__()
        c = shape.channels
        self.how = how
        self.depthwise = convolution(shape.dims, c, c, groups=c)
        self.norm = nn.LayerNorm(c, eps=EPSILON)
        self.expand, self.project = nn.Linear(c, hidden), nn.Linear(hidden, c)
        self.scale = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "permute":
            y = self.depthwise(x).permute(0, *range(2, x.ndim), 1)
        elif self.how == "movedim":
            y = torch.movedim(self.depthwise(x), 1, -1)
        else:
            y = self.depthwise(x).flatten(2).transpose(1, 2)
        y = self.scale * self.project(functional.gelu(self.expand(self.norm(y))))
        if self.how == "permute":
            return x + y.permute(0, x.ndim - 1, *range(1, x.ndim - 1))
        if self.how == "movedim":
            return x + torch.movedim(y, -1, 1)
        return x + y.transpose(1, 2).reshape(x.shape)


@dataclass(frozen=True, repr=False)
class ChannelsLast(Part):
    """Linear layers over channels that were permuted to the end, with LayerNorm and layer scale (ConvNeXt)."""

    hidden: int = choice(4, 2, 5)
    how: str = choice("permute", "movedim", "flatten")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        return _Last(shape, self.hidden, self.how), shape


class _Einsum(nn.Module):
    def __init__(self, channels: int, width: int, heads: int, how: str) -> None:
        super().__init__()
        self.how = how
        sizes = {
            "mix": (channels, channels),
            "heads": (heads, channels // heads, width),
            "bilinear": (channels, width),
            "gram": (channels, channels),
        }
        self.weight = nn.Parameter(torch.randn(sizes[how]) * 0.5)
        self.other = nn.Parameter(torch.randn(channels, width) * 0.5) if how == "bilinear" else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        if self.how == "mix":
            y = torch.einsum("nct,cd->ndt", flat, self.weight)
        elif self.how == "heads":
            y = torch.einsum("nhct,hcd->nhdt", flat.unflatten(1, self.weight.shape[:2]), self.weight).flatten(1, 2)
        elif self.how == "bilinear":
            y = torch.einsum("nct,ck->nkt", flat, self.weight) * torch.einsum("nct,ck->nkt", flat, self.other)
        else:  # channel attention: a matrix of channels by channels
            gram = torch.einsum("nct,ndt->ncd", flat, flat) / flat.shape[2]
            y = torch.einsum("ncd,ndt->nct", torch.tanh(gram) * self.weight, flat)
        return y.reshape(x.shape[0], -1, *x.shape[2:])


@dataclass(frozen=True, repr=False)
class Einsum(Part):
    """Einstein sums with parameters: a mixing matrix, one per head, a product of two, a Gram matrix."""

    width: int = choice(*WIDTHS)
    heads: int = choice(2, 3)
    how: str = choice("mix", "heads", "bilinear", "gram")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        first, inside = aligned(shape, self.heads if self.how == "heads" else 1)
        body = _Einsum(inside.channels, self.width, self.heads, self.how)
        out = {"heads": self.heads * self.width, "bilinear": self.width}.get(self.how, inside.channels)
        return after(first, body), shape.of(out)


@dataclass(frozen=True, repr=False)
class RoundTrip(Part):
    """Views there and back that change nothing, and one that moves pixels; a layer on either side."""

    how: str = choice("flatten", "transpose", "tokens", "unbind", "roll", "repeat", "squeeze", "expand")
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        c, size = shape.channels, shape.size
        body = layer(shape.dims, c, c, self)
        functions = {
            "flatten": lambda y: y.flatten(1).tanh().view(-1, c, *size),
            "transpose": lambda y: y.transpose(1, 2).contiguous().sigmoid().transpose(2, 1),
            "tokens": lambda y: y.flatten(2).transpose(1, 2).tanh().mT.unflatten(2, size),
            "unbind": lambda y: torch.stack([piece.tanh() for piece in y.unbind(-1)], -1),
            "roll": lambda y: torch.roll(y, 1, -1),
            "repeat": lambda y: y.repeat(1, 2, *([1] * len(size))),
            "squeeze": lambda y: y.unsqueeze(1).squeeze(1)[:, :, None].tanh().flatten(1, 2),
            "expand": lambda y: y[:, :, None].expand(-1, -1, 2, *([-1] * len(size))).reshape(y.shape[0], 2 * c, *size),
        }
        move = functions[self.how]
        out = 2 * c if self.how in {"repeat", "expand"} else c
        return Wrapped(lambda x, f: move(f(x)), body), shape.of(out)
