"""Parts of composed networks: patches, positions, extra tokens, and layers over tokens."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.parts_attention import positions, token_norm
from tests.networks.parts_base import Map, Part, Tokens, Wrapped, choice, convolution, divisor


class _Patches(nn.Module):
    """A feature map as tokens, class and register tokens before them, positions added."""

    def __init__(self, shape: Map, out: Tokens, part: "Patches", stride: int) -> None:
        super().__init__()
        self.part = part
        self.embed = convolution(shape.dims, shape.channels, part.width, stride, stride=stride)
        if stride == 2:  # no overlap
            self.embed.padding = (0,) * shape.dims
        if out.extra:
            self.token = nn.Parameter(torch.randn(1, 1, part.width))
        if out.extra > 1:
            self.registers = nn.Parameter(torch.randn(1, out.extra - 1, part.width))
        count = out.count if part.positions != "before" else out.count - out.extra
        if part.positions in {"parameter", "before"}:
            self.table = nn.Parameter(torch.randn(1, count, part.width) * 0.5)
        elif part.positions == "buffer":
            self.register_buffer("table", positions(count, part.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        if self.part.positions == "before":
            x = x + self.table
        extra = [
            getattr(self, name).expand(x.shape[0], -1, -1) for name in ("token", "registers") if hasattr(self, name)
        ]
        if extra:
            x = torch.cat([*extra, x], dim=1)
        return x + self.table if self.part.positions in {"parameter", "buffer"} else x


@dataclass(frozen=True, repr=False)
class Patches(Part):
    """From a feature map to tokens.

    Attributes:
        width: Channels of a token.
        extra: No further tokens, a class token, or a class token and two registers.
        positions: Added to tokens: nothing, a parameter, a buffer, a parameter for the patches alone.
    """

    width: int = choice(4, 3, 6, 8)
    extra: int = choice(0, 1, 3)
    positions: str = choice("none", "parameter", "buffer", "before")

    def kinds(self) -> list[str]:
        return [*super().kinds(), f"Patches.extra={self.extra}"]

    def build(self, shape: Map) -> tuple[nn.Module, Tokens]:
        stride = 2 if shape.even else 1
        grid = tuple(size // stride for size in shape.size)
        out = Tokens(self.width, grid, self.extra)
        return _Patches(shape, out, self, stride), out


class _Mlp(nn.Module):
    def __init__(self, channels: int, part: "Mlp") -> None:
        super().__init__()
        self.part = part
        self.norm = token_norm(part.norm, channels)
        self.expand = nn.Linear(channels, (2 if part.how in {"chunk", "glu"} else 1) * part.hidden)
        if part.how == "pair":
            self.gate = nn.Linear(channels, part.hidden, bias=False)
        self.inner = token_norm(part.inner, part.hidden)
        self.project = nn.Linear(part.hidden, channels)
        self.scale = nn.Parameter(torch.ones(channels)) if part.layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.part.how == "chunk":
            value, gate = self.expand(y).chunk(2, dim=-1)
            hidden = value * functional.silu(gate)
        elif self.part.how == "glu":
            hidden = functional.glu(self.expand(y), -1)
        elif self.part.how == "pair":
            hidden = self.expand(y) * functional.gelu(self.gate(y))
        else:
            hidden = functional.gelu(self.expand(y))
        y = self.project(self.inner(hidden))
        return x + (y if self.scale is None else self.scale * y)


@dataclass(frozen=True, repr=False)
class Mlp(Part):
    """Two linear layers over tokens with a residual; the hidden channels may be gated and normalised."""

    hidden: int = choice(4, 3, 6)
    how: str = choice("plain", "chunk", "glu", "pair")
    norm: str = choice("none", "layer", "rms")
    inner: str = choice("none", "layer")
    layer_scale: bool = choice(False, True)

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        return _Mlp(shape.channels, self), shape


class _Mixer(nn.Module):
    def __init__(self, shape: Tokens, part: "Mixer") -> None:
        super().__init__()
        self.how = part.how
        self.norm = token_norm(part.norm, shape.channels)
        if part.how == "convolution":
            self.expand, self.project = nn.Conv1d(shape.count, part.hidden, 1), nn.Conv1d(part.hidden, shape.count, 1)
        else:
            self.expand, self.project = nn.Linear(shape.count, part.hidden), nn.Linear(part.hidden, shape.count)
        self.gate = nn.Parameter(torch.ones(part.hidden)) if part.how == "scaled" else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.how == "convolution":  # tokens are its channels
            return x + self.project(functional.gelu(self.expand(y)))
        hidden = functional.gelu(self.expand(y.transpose(1, 2)))
        if self.gate is not None:
            hidden = hidden * self.gate
        return x + self.project(hidden).transpose(1, 2)


@dataclass(frozen=True, repr=False)
class Mixer(Part):
    """Layers along the token axis (MLP-Mixer, ResMLP)."""

    hidden: int = choice(3, 2, 5)
    how: str = choice("linear", "convolution", "scaled")
    norm: str = choice("none", "layer", "rms")

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        return _Mixer(shape, self), shape


@dataclass(frozen=True, repr=False)
class TokenLinear(Part):
    """A linear layer to another width, with a normalisation."""

    width: int = choice(4, 3, 6, 8)
    how: str = choice("linear", "einsum", "batch", "group")

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        linear = nn.Linear(shape.channels, self.width)
        out = Tokens(self.width, shape.grid, shape.extra)
        if self.how == "einsum":
            return Wrapped(lambda x, f: torch.relu(torch.einsum("ntc,dc->ntd", x, f.weight) + f.bias), linear), out
        if self.how == "linear":
            return Wrapped(lambda x, f: torch.relu(f(x)), linear), out
        norm = nn.BatchNorm1d(self.width)
        if self.how == "group":
            norm = nn.GroupNorm(divisor(self.width, 2), self.width, eps=0.1)
        return Wrapped(lambda x, f, g: torch.relu(g(f(x).transpose(1, 2)).transpose(1, 2)), linear, norm), out


@dataclass(frozen=True, repr=False)
class Convolved(Part):
    """Patches as a feature map again, a depthwise or full convolution, and back to tokens (CPVT, CvT)."""

    depthwise: bool = choice(True, False)
    residual: bool = choice(True, False)

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        c, dims = shape.channels, len(shape.grid)
        body = convolution(dims, c, c, groups=c if self.depthwise else 1)

        def forward(x: Tensor, f: nn.Module) -> Tensor:
            extra, patches = x[:, : shape.extra], x[:, shape.extra :]
            y = f(patches.transpose(1, 2).reshape(x.shape[0], -1, *shape.grid)).flatten(2).transpose(1, 2)
            y = patches + y if self.residual else torch.relu(y)
            return torch.cat([extra, y], 1) if shape.extra else y

        return Wrapped(forward, body), shape


@dataclass(frozen=True, repr=False)
class Merge(Part):
    """Fewer tokens: neighbours side by side through a linear layer (Swin), or pooled; extra tokens are left behind."""

    width: int = choice(4, 3, 6)
    how: str = choice("view", "slices", "pool")

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        count, c = prod(shape.grid), shape.channels
        if count % 2 or count < 4:
            return Wrapped(lambda x, f: f(x), nn.Linear(c, self.width)), Tokens(self.width, shape.grid, shape.extra)
        linear = nn.Linear(c if self.how == "pool" else 2 * c, self.width)

        def forward(x: Tensor, f: nn.Module) -> Tensor:
            x = x[:, shape.extra :]
            if self.how == "view":
                return f(x.reshape(x.shape[0], count // 2, 2 * c))
            if self.how == "slices":
                return f(torch.cat([x[:, 0::2], x[:, 1::2]], -1))
            return f(functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2))

        return Wrapped(forward, linear), Tokens(self.width, (count // 2,))
