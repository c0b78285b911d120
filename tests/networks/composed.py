"""Networks composed at random out of small parts; a recipe prints as the code that rebuilds it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from tests.networks.parts_attention import Attention, Encoder, OnPixels, Windows
from tests.networks.parts_base import Map, Part, Tokens, convolution
from tests.networks.parts_convolution import (
    Conv,
    Depthwise,
    Grouped,
    InvertedResidual,
    Norm,
    Raw,
    Residual,
    Shared,
    Strided,
    Transposed,
)
from tests.networks.parts_gates import Gate, GatedConv, Selective, Squeeze
from tests.networks.parts_joins import (
    Branches,
    Concat,
    Coordinates,
    Ghost,
    Hourglass,
    OptionA,
    Shuffle,
    Slices,
    Split,
)
from tests.networks.parts_reshape import Bands, ChannelsLast, Einsum, PixelShuffle, RoundTrip, ThroughLinear
from tests.networks.parts_tokens import Convolved, Merge, Mixer, Mlp, Patches, TokenLinear

# The simplest first: that is what a counterexample shrinks to.
MAP_PARTS: tuple[type[Part], ...] = (
    Conv, Residual, Concat, Split, Slices, Branches, Grouped, Depthwise, InvertedResidual, Shuffle, Squeeze, Selective,
    Gate, GatedConv, Shared, Raw, Norm, Strided, OptionA, Ghost, Coordinates, Transposed, Hourglass, Bands,
    ChannelsLast, ThroughLinear, Einsum, RoundTrip, PixelShuffle, Windows, OnPixels,
)  # fmt: skip
TOKEN_PARTS: tuple[type[Part], ...] = (TokenLinear, Attention, Mlp, Mixer, Convolved, Merge, Encoder)
PIXEL_PARTS: tuple[type[Part], ...] = (Attention, Mlp, Mixer, Convolved, Encoder)  # also over pixels as tokens
HEADS = ("pool", "flatten", "dense", "two", "dictionary", "bare")
TOKEN_HEADS = ("pool", "first", "flatten", "dense", "two")
SIZES = {1: (12,), 2: (8, 8), 3: (4, 4, 4)}
WIDEST = 16  # channels; more are brought down by a 1x1 convolution, so that networks stay small


@dataclass(frozen=True)
class Recipe:
    """A composed network.

    Attributes:
        dims: Spatial axes of the images.
        stem: Channels after the first convolution.
        steps: Parts over the feature map, in order.
        patches: How the map becomes tokens; None where it does not.
        token_steps: Parts over the tokens, in order.
        head: One of `HEADS`, or of `TOKEN_HEADS` after tokens.
        seed: Of weights, statistics and inputs.
    """

    dims: int = 2
    stem: int = 4
    steps: tuple[Part, ...] = ()
    patches: Patches | None = None
    token_steps: tuple[Part, ...] = ()
    head: str = "pool"
    seed: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts in order."""
        return (*self.steps, *([self.patches] if self.patches else ()), *self.token_steps)

    def kinds(self) -> set[str]:
        """What the network is an example of."""
        names = {kind for part in self.parts for kind in part.kinds()}
        return names | {f"images of {self.dims} axes", f"head: {'tokens ' if self.patches else ''}{self.head}"}

    def build(self) -> nn.Module:
        """The network in float64, eval mode, with random statistics and affine parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = Composed(self)
        return randomise(module.double(), self.seed).eval()

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Normally distributed float64 images."""
        generator = torch.Generator().manual_seed(self.seed + batch)
        return (torch.randn(batch, 3, *SIZES[self.dims], generator=generator, dtype=torch.float64),)

    def __repr__(self) -> str:
        default = Recipe()
        names = ("dims", "stem", "steps", "patches", "token_steps", "head", "seed")
        changed = [name for name in names if getattr(self, name) != getattr(default, name)]
        return f"Recipe({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a counterexample."""
        printer.text(repr(self))


class Composed(nn.Module):
    """The network of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        shape: Any = Map(recipe.stem, SIZES[recipe.dims])
        self.stem = nn.Sequential(convolution(recipe.dims, 3, recipe.stem), nn.ReLU())
        blocks: list[nn.Module] = []
        for part in recipe.parts:
            block, shape = part.build(shape)
            blocks.append(block)
            if isinstance(shape, Map) and shape.channels > WIDEST:
                blocks.append(convolution(shape.dims, shape.channels, 8, 1))
                shape = shape.of(8)
        self.blocks = nn.Sequential(*blocks)
        self.head = recipe.head
        self.last = _Last(recipe.head, shape)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.blocks(self.stem(x)))


class _Last(nn.Module):
    """Outputs of a network: from a feature map ``(N, C, *size)`` or from tokens ``(N, T, C)``."""

    def __init__(self, head: str, shape: Map | Tokens) -> None:
        super().__init__()
        self.head = head
        count = shape.pixels if isinstance(shape, Map) else shape.count
        self.axes = tuple(range(2, 2 + shape.dims)) if isinstance(shape, Map) else (1,)
        self.linear = nn.Linear(shape.channels * (count if head == "flatten" else 1), 3)
        if head in {"dense", "two", "dictionary"}:
            tokens = isinstance(shape, Tokens)
            self.dense = nn.Linear(shape.channels, 2) if tokens else convolution(shape.dims, shape.channels, 2, 1)

    def forward(self, x: Tensor) -> Any:
        if self.head == "bare":
            return x
        if self.head == "flatten":
            return self.linear(x.flatten(1))
        if self.head == "dense":
            return self.dense(x)
        if self.head == "first":
            return self.linear(x[:, 0])
        pooled = self.linear(x.mean(self.axes))
        if self.head == "two":
            return pooled, self.dense(x)
        return {"label": pooled, "map": self.dense(x)} if self.head == "dictionary" else pooled
