"""Networks composed at random out of small blocks; a recipe prints as the code that rebuilds it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.trial import randomise
from tests.networks import gates, joins
from tests.networks.chains import conv_bn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "none": lambda width: nn.Identity(),
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
    "group": lambda width: nn.GroupNorm(2 if width % 2 == 0 else 1, width),
}
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(inplace=True),
    "sigmoid": lambda width: nn.Sigmoid(),
    "gelu": lambda width: nn.GELU(),
    "hardswish": lambda width: nn.Hardswish(),
    "prelu": nn.PReLU,
    "none": lambda width: nn.Identity(),
}


@dataclass(frozen=True)
class Step:
    """One block of a composed network.

    Attributes:
        kind: Key of `BLOCKS`.
        width: Channels the block makes, where it is free to choose (inner width, growth, outputs).
        norm: Key of `NORMS`.
        activation: Key of `ACTIVATIONS`.
        number: Groups, heads, parts or pieces, by kind; clipped to what the channels allow.
    """

    kind: str
    width: int = 4
    norm: str = "batch"
    activation: str = "relu"
    number: int = 2


@dataclass(frozen=True)
class Recipe:
    """A composed network.

    Attributes:
        stem: Channels after the first convolution.
        steps: The blocks in order.
        head: "pool" (global average), "flatten" (every pixel a feature), "dense" (1x1 convolution), or "two".
        seed: Of weights, statistics and inputs.
    """

    stem: int = 4
    steps: tuple[Step, ...] = ()
    head: str = "pool"
    seed: int = 0

    def build(self) -> nn.Module:
        """The network in float64, eval mode, with random statistics and affine parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = Composed(self)
        return randomise(module.double(), self.seed).eval()

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Normally distributed float64 images of 8x8 pixels."""
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.randn(batch, 3, 8, 8, generator=generator, dtype=torch.float64),)


def divisor(channels: int, wanted: int) -> int:
    """The largest divisor of `channels` up to `wanted`."""
    return max(number for number in range(1, wanted + 1) if channels % number == 0)


def _conv(inputs: int, outputs: int, step: Step, *, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=step.norm != "batch"),
        NORMS[step.norm](outputs),
        ACTIVATIONS[step.activation](outputs),
    )


class Wrapped(nn.Module):
    """A function of some modules and a feature."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


class Scaled(nn.Module):
    """Scale and offset that belong to no layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.offset = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


class Tokens(nn.Module):
    """LayerNorm and two linear layers over pixels as tokens, with a residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return (y + self.mlp(self.norm(y))).permute(0, 3, 1, 2)


class Sequence(nn.Module):
    """Pixels as one sequence: flatten, linear layers with a residual, unflatten (no normalisation)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.project = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.project(torch.relu(self.expand(tokens)))
        return tokens.transpose(1, 2).reshape(batch, channels, rows, columns)


def _residual(c: int, step: Step) -> tuple[nn.Module, int]:
    body = nn.Sequential(_conv(c, step.width, step), _conv(step.width, c, step, kernel=1))
    return Wrapped(lambda x, f: x + f(x), body), c


def _project(c: int, step: Step) -> tuple[nn.Module, int]:
    body = nn.Sequential(_conv(c, step.width, step), _conv(step.width, step.width, step))
    return Wrapped(lambda x, f, g: torch.relu(f(x) + g(x)), body, nn.Conv2d(c, step.width, 1)), step.width


def _concat(c: int, step: Step) -> tuple[nn.Module, int]:
    return Wrapped(lambda x, f: torch.cat([x, f(x)], 1), _conv(c, step.width, step)), c + step.width


def _branches(c: int, step: Step) -> tuple[nn.Module, int]:
    branches = [_conv(c, step.width, step), _conv(c, step.number, step, kernel=1)]
    return Wrapped(lambda x, f, g: torch.cat([f(x), g(x)], 1), *branches), step.width + step.number


def _split(c: int, step: Step) -> tuple[nn.Module, int]:
    cut = max(1, c // 2 - step.number % 2)

    def forward(x: Tensor, f: nn.Module) -> Tensor:
        left, right = torch.split(x, [cut, c - cut], dim=1)
        return torch.cat([f(left), right], 1)

    return Wrapped(forward, _conv(cut, cut, step)), c


def _slice(c: int, step: Step) -> tuple[nn.Module, int]:
    cut = max(1, c // 2)
    return Wrapped(lambda x, f: f(x[:, :cut]) + x[:, c - cut :], _conv(cut, cut, step)), cut


def _chunk(c: int, step: Step) -> tuple[nn.Module, int]:
    if c % 2:
        return _slice(c, step)
    return Wrapped(lambda x, f: torch.cat([f(x.chunk(2, 1)[0]), x.chunk(2, 1)[1]], 1), _conv(c // 2, c // 2, step)), c


def _grouped(c: int, step: Step) -> tuple[nn.Module, int]:
    groups = divisor(c, step.number)
    return _conv(c, groups * step.width, step, groups=groups), groups * step.width


def _shuffle(c: int, step: Step) -> tuple[nn.Module, int]:
    groups = divisor(c, step.number)
    return Wrapped(lambda x, f: joins.channel_shuffle(f(x), groups), _conv(c, c, step)), c


def _attention(c: int, step: Step) -> tuple[nn.Module, int]:
    options = {"fused": step.width % 2 == 0, "flash": step.norm == "batch"}
    return gates.Attention(c, divisor(c, step.number), **options), c


def _reshape(c: int, step: Step) -> tuple[nn.Module, int]:
    parts = divisor(c, step.number)

    def forward(x: Tensor, f: nn.Module) -> Tensor:
        pieces = f(x).unflatten(1, (parts, c // parts))
        return (pieces * pieces.mean((3, 4), keepdim=True).sigmoid()).flatten(1, 2)

    return Wrapped(forward, _conv(c, c, step)), c


def _pixel_shuffle(c: int, step: Step) -> tuple[nn.Module, int]:
    expand = nn.Conv2d(c, 4 * step.width, 3, padding=1)
    return Wrapped(lambda x, f: functional.avg_pool2d(functional.pixel_shuffle(f(x), 2), 2), expand), step.width


def _transposed(c: int, step: Step) -> tuple[nn.Module, int]:
    up = nn.ConvTranspose2d(step.width, step.width, 2, 2)
    return Wrapped(lambda x, f, g: torch.cat([x, g(f(x))], 1), conv_bn(c, step.width, 3, 2), up), c + step.width


def _pad(c: int, step: Step) -> tuple[nn.Module, int]:
    low, high = step.number // 2, step.number - step.number // 2
    body = _conv(c, c + step.number, step)
    return Wrapped(lambda x, f: f(x) + functional.pad(x, (0, 0, 0, 0, low, high)), body), c + step.number


def _twice(c: int, step: Step) -> tuple[nn.Module, int]:
    return Wrapped(lambda x, f: f(f(x)), _conv(c, c, step)), c


def _plain(module: Callable[[int, Step], nn.Module]) -> Callable[[int, Step], tuple[nn.Module, int]]:
    return lambda c, step: (module(c, step), c)


BLOCKS: dict[str, Callable[[int, Step], tuple[nn.Module, int]]] = {
    "conv": lambda c, step: (_conv(c, step.width, step), step.width),
    "residual": _residual,
    "project": _project,
    "concat": _concat,
    "branches": _branches,
    "split": _split,
    "slice": _slice,
    "chunk": _chunk,
    "grouped": _grouped,
    "depthwise": _plain(lambda c, step: _conv(c, c, step, groups=c)),
    "shuffle": _shuffle,
    "squeeze": _plain(lambda c, step: gates.SqueezeExcitation(c, step.width)),
    "mean_gate": _plain(lambda c, step: gates.MeanGate()),
    "pixel_gate": _plain(lambda c, step: gates.PixelGate(c)),
    "attention": _attention,
    "reshape": _reshape,
    "sequence": _plain(lambda c, step: Sequence(c, step.width)),
    "tokens": _plain(lambda c, step: Tokens(c, step.width)),
    "scaled": _plain(lambda c, step: Scaled(c)),
    "pixel_shuffle": _pixel_shuffle,
    "transposed": _transposed,
    "pad": _pad,
    "twice": _twice,
    "norm": _plain(lambda c, step: nn.Sequential(NORMS[step.norm](c), ACTIVATIONS[step.activation](c))),
}


@dataclass(eq=False)
class _Width:
    """Channels as blocks are chained."""

    channels: int
    blocks: list[nn.Module] = field(default_factory=list)


class Composed(nn.Module):
    """The network of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = _Width(recipe.stem)
        for step in recipe.steps:
            block, width.channels = BLOCKS[step.kind](width.channels, step)
            width.blocks.append(block)
        self.stem = conv_bn(3, recipe.stem)
        self.blocks = nn.Sequential(*width.blocks)
        self.head = recipe.head
        self.fc = nn.Linear(width.channels * (16 if recipe.head == "flatten" else 1), 3)
        self.dense = nn.Conv2d(width.channels, 2, 1) if recipe.head in {"dense", "two"} else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.blocks(self.stem(x))
        if self.head == "flatten":
            return self.fc(functional.max_pool2d(x, 2).flatten(1))
        if self.dense is None:
            return self.fc(x.mean((2, 3)))
        if self.head == "two":
            return self.fc(x.mean((2, 3))), self.dense(x)
        return self.dense(x)
