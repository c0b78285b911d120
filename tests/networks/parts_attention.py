"""Parts of composed networks: attention in the many ways that it is written."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.parts_base import EPSILON, Map, Part, Tokens, choice

__all__ = ["Attention", "Encoder", "Heads", "OnPixels", "Windows"]


def token_norm(name: str, channels: int) -> nn.Module:
    """A normalisation of tokens ``(N, T, channels)``."""
    if name == "layer":
        return nn.LayerNorm(channels, eps=EPSILON)
    return nn.RMSNorm(channels, eps=EPSILON) if name == "rms" else nn.Identity()


class Heads(nn.Module):
    """Multi-head attention over tokens with a residual, by the options of `Attention`.

    Shapes: x ``(N, T, C)``, q ``(N, h, T, d)``, k and v ``(N, k, T, d)``, scores ``(N, h, T, T)``.
    """

    def __init__(self, channels: int, tokens: int, part: "Attention") -> None:
        super().__init__()
        self.part, self.tokens = part, tokens
        h, d = part.heads, part.size
        self.key_heads = h if part.keys == "all" else 1 if part.keys == "one" else max(1, h // 2)
        if part.project not in {"separate", "pair"} or h % self.key_heads:
            self.key_heads = h
        self.norm = token_norm(part.norm, channels)
        self._projections(channels, h, d)
        self.out = nn.Linear(h * d, channels)
        if part.qk_norm in {"layer", "rms"}:
            self.query_norm, self.key_norm = token_norm(part.qk_norm, d), token_norm(part.qk_norm, d)
        elif part.qk_norm == "l2":
            self.temperature = nn.Parameter(torch.ones(h, 1, 1))
        self._bias(h)
        if part.talking:
            self.before, self.after = nn.Linear(h, h), nn.Conv2d(h, h, 1)
        self.scale = nn.Parameter(torch.ones(channels)) if part.layer_scale else None

    def _projections(self, channels: int, h: int, d: int) -> None:
        project, keys = self.part.project, self.key_heads
        if project == "einsum":
            for name in ("query", "key", "value"):
                self.register_parameter(name, nn.Parameter(torch.randn(h, channels, d) * 0.4))
        elif project == "separate":
            self.query = nn.Linear(channels, h * d)
            self.key, self.value = (nn.Linear(channels, keys * d, bias=self.part.norm == "none") for _ in range(2))
        elif project == "pair":
            self.query, self.pair = nn.Linear(channels, h * d), nn.Linear(channels, 2 * keys * d)
        else:
            self.qkv = nn.Linear(channels, 3 * h * d, bias=self.part.norm != "none")

    def _bias(self, h: int) -> None:
        kind, count = self.part.bias, self.tokens
        if kind == "table":
            self.table = nn.Parameter(torch.randn(h, count, count) * 0.3)
        elif kind == "relative":
            self.table = nn.Parameter(torch.randn(2 * count - 1, h) * 0.3)
            steps = torch.arange(count)
            self.register_buffer("steps", (steps[:, None] - steps[None, :] + count - 1).flatten())
        elif kind == "mask":
            self.register_buffer("mask", torch.randn(count, count) * 0.3)
        elif kind == "slope":  # one number per head (ALiBi)
            self.slopes = nn.Parameter(torch.randn(h) * 0.3)
            self.register_buffer("far", (torch.arange(count)[:, None] - torch.arange(count)[None, :]).abs() / count)

    def forward(self, x: Tensor) -> Tensor:
        part, size = self.part, x.shape
        query, key, value = self.projected(self.norm(x))
        if part.qk_norm in {"layer", "rms"}:
            query, key = self.query_norm(query), self.key_norm(key)
        elif part.qk_norm == "l2":
            query = functional.normalize(query, dim=-1, eps=0.5) * self.temperature
            key = functional.normalize(key, dim=-1, eps=0.5)
        key, value = self.repeated(key), self.repeated(value)
        mixed = self.mixed(query, key, value).transpose(1, 2)
        out = self.out(mixed.flatten(2) if part.norm == "rms" else mixed.reshape(size[0], size[1], -1))
        if self.scale is not None:
            out = out * self.scale
        return x + out

    def projected(self, y: Tensor) -> tuple[Tensor, ...]:
        """Query, key, value."""
        n, t, h, d = y.shape[0], y.shape[1], self.part.heads, self.part.size
        project = self.part.project
        if project == "einsum":
            return tuple(torch.einsum("ntc,hcd->nhtd", y, weight) for weight in (self.query, self.key, self.value))
        if project == "separate":
            key, value = (f(y).view(n, t, self.key_heads, d).transpose(1, 2) for f in (self.key, self.value))
            return self.query(y).view(n, t, h, d).transpose(1, 2), key, value
        if project == "pair":
            key, value = self.pair(y).reshape(n, t, 2, self.key_heads, d).permute(2, 0, 3, 1, 4).unbind(0)
            return self.query(y).view(n, t, h, d).transpose(1, 2), key, value
        if project == "chunk":
            return tuple(one.reshape(n, t, h, d).transpose(1, 2) for one in self.qkv(y).chunk(3, -1))
        if project == "split":
            return tuple(one.unflatten(-1, (h, d)).permute(0, 2, 1, 3) for one in self.qkv(y).split(h * d, -1))
        if project == "heads":  # the three parts of one head lie beside each other
            return self.qkv(y).view(n, t, h, 3 * d).transpose(1, 2).chunk(3, -1)
        stacked = self.qkv(y).reshape(n, t, 3, h, d).permute(2, 0, 3, 1, 4)
        return stacked.unbind(0) if project == "reshape" else (stacked[0], stacked[1], stacked[2])

    def repeated(self, x: Tensor) -> Tensor:
        """Keys or values for every query head."""
        h, part = self.part.heads, self.part
        if self.key_heads == h or part.product == "gqa":
            return x
        if part.keys == "one":
            return x.expand(-1, h, -1, -1)
        if part.layer_scale:
            return x.repeat_interleave(h // self.key_heads, dim=1)
        return x[:, :, None].expand(-1, -1, h // self.key_heads, -1, -1).reshape(x.shape[0], h, *x.shape[2:])

    def bias(self) -> Tensor | None:
        """What is added to the scores."""
        kind, count = self.part.bias, self.tokens
        if kind == "relative":
            return self.table[self.steps].view(count, count, -1).permute(2, 0, 1).unsqueeze(0)
        if kind == "slope":
            return self.slopes[:, None, None] * self.far
        return {"table": getattr(self, "table", None), "mask": getattr(self, "mask", None)}.get(kind)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values weighed by the softmax of the scores."""
        part, bias = self.part, self.bias()
        if part.product == "linear":  # no softmax: keys times values first
            query, key = functional.elu(query) + 1, functional.elu(key) + 1
            total = (query * key.sum(2, keepdim=True)).sum(-1, keepdim=True)
            return query @ (key.transpose(-2, -1) @ value) / (total + 1)
        if part.product in {"sdpa", "gqa"} and not part.talking:
            gqa = part.product == "gqa" and self.key_heads != part.heads
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=gqa)
        if part.product == "gqa" and self.key_heads != part.heads:
            key, value = (one.repeat_interleave(part.heads // self.key_heads, 1) for one in (key, value))
        query = query * part.size**-0.5
        if part.product == "einsum":
            scores = torch.einsum("nhqd,nhkd->nhqk", query, key)
        elif part.product == "bmm":
            scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
            scores = scores.view(-1, part.heads, *scores.shape[1:])
        else:
            scores = query @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        if part.talking:
            scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = scores.softmax(-1)
        if part.talking:
            weights = self.after(weights)
        return torch.einsum("nhqk,nhkd->nhqd", weights, value) if part.product == "einsum" else weights @ value


@dataclass(frozen=True, repr=False)
class Attention(Part):
    """Multi-head attention over tokens.

    Attributes:
        heads: Query heads.
        size: Channels per head.
        project: How query, key and value are made: one projection cut by reshape, index, chunk, split or head by head;
            three; one and a pair; or parameters in an Einstein sum.
        product: How scores and weights are multiplied; "linear" has no softmax.
        keys: As many key heads as query heads, half as many, or one (separate projections only).
        bias: Added to the scores: a table, a table indexed by distance, a constant, a slope per head.
        talking: Whether heads are mixed before and after the softmax.
        qk_norm: Normalisation of queries and keys.
        norm: Normalisation of the input.
        layer_scale: Whether the result is scaled before it is added.
    """

    heads: int = choice(2, 1, 3, 4)
    size: int = choice(2, 1, 3)
    project: str = choice("separate", "reshape", "index", "chunk", "split", "heads", "pair", "einsum")
    product: str = choice("matmul", "sdpa", "einsum", "bmm", "linear", "gqa")
    keys: str = choice("all", "half", "one")
    bias: str = choice("none", "table", "relative", "mask", "slope")
    talking: bool = choice(False, False, True)
    qk_norm: str = choice("none", "none", "layer", "rms", "l2")
    norm: str = choice("none", "layer", "rms")
    layer_scale: bool = choice(False, True)

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        return Heads(shape.channels, shape.count, self), shape


@dataclass(frozen=True, repr=False)
class Encoder(Part):
    """torch's own modules: an encoder layer, or multi-head attention alone."""

    heads: int = choice(2, 1, 3)
    hidden: int = choice(4, 3, 6)
    first: bool = choice(False, True)
    alone: bool = choice(False, True)

    def build(self, shape: Tokens) -> tuple[nn.Module, Tokens]:
        heads = max(number for number in range(1, self.heads + 1) if shape.channels % number == 0)
        if self.alone:
            attention = nn.MultiheadAttention(shape.channels, heads, batch_first=True)
            return _Alone(attention), shape
        options = {"norm_first": self.first, "batch_first": True, "layer_norm_eps": EPSILON, "activation": "gelu"}
        return nn.TransformerEncoderLayer(shape.channels, heads, self.hidden, **options), shape


class _Alone(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


class _OnPixels(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


@dataclass(frozen=True, repr=False)
class OnPixels(Part):
    """A block of tokens over the pixels of a feature map."""

    block: Part = Attention()

    @classmethod
    def options(cls) -> dict[str, tuple[object, ...]]:
        """Its block is a part of its own."""
        return {}

    def kinds(self) -> list[str]:
        return [type(self).__name__, *self.block.kinds()]

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        inner, out = self.block.build(Tokens(shape.channels, shape.size))
        return _OnPixels(inner), shape.of(out.channels)


class _Windows(nn.Module):
    """Attention within windows of 2 by 2 (or 2 per axis) pixels, the map rolled by one pixel before and after."""

    def __init__(self, shape: Map, part: "Windows") -> None:
        super().__init__()
        self.part, self.size = part, shape.size
        tokens = 2 ** len(shape.size)
        self.heads = Heads(shape.channels, tokens, Attention(**part.attention()))

    def forward(self, x: Tensor) -> Tensor:
        dims = len(self.size)
        axes = tuple(range(1, 1 + dims))
        y = x.permute(0, *range(2, 2 + dims), 1)
        if self.part.shift:
            y = torch.roll(y, [-1] * dims, axes)
        channels = y.shape[-1]
        cut = [extent for size in self.size for extent in (size // 2, 2)]
        y = y.reshape(y.shape[0], *cut, channels)
        outer, inner = range(1, 1 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
        y = y.permute(0, *outer, *inner, 1 + 2 * dims).reshape(-1, 2**dims, channels)
        y = self.heads(y)
        y = y.reshape(-1, *(size // 2 for size in self.size), *([2] * dims), channels)
        y = y.permute(0, *(axis for pair in zip(range(1, 1 + dims), range(1 + dims, 1 + 2 * dims), strict=True)
                           for axis in pair), 1 + 2 * dims)  # fmt: skip
        y = y.reshape(-1, *self.size, channels)
        if self.part.shift:
            y = torch.roll(y, [1] * dims, axes)
        return y.permute(0, 1 + dims, *axes)


@dataclass(frozen=True, repr=False)
class Windows(Part):
    """Attention within windows, with a table of relative positions, shifted or not (Swin)."""

    dims: ClassVar[tuple[int, ...]] = (2, 1)
    heads: int = choice(2, 1, 3)
    size: int = choice(2, 1, 3)
    project: str = choice("separate", "reshape", "chunk")
    product: str = choice("matmul", "sdpa")
    bias: str = choice("none", "relative", "table")
    shift: bool = choice(False, True)
    norm: str = choice("none", "layer")

    def attention(self) -> dict[str, object]:
        """Its attention's options."""
        return {name: getattr(self, name) for name in ("heads", "size", "project", "product", "bias", "norm")}

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        if any(size % 2 for size in shape.size):
            return OnPixels(Attention(**self.attention())).build(shape)
        return _Windows(shape, self), shape


def positions(count: int, channels: int) -> Tensor:
    """Sines and cosines of positions, ``(1, count, channels)``."""
    angles = torch.arange(count)[:, None] / 10 ** (torch.arange(channels) / channels) + math.pi / 2 * torch.arange(
        channels
    )
    return angles.sin()[None]
