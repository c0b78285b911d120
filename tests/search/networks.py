"""Small networks of two or three stages, and their supernets, in float64."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.trial import randomise
from curlfx.coupling import couple
from curlfx.graph import trace
from curlfx.search.space import Space
from curlfx.search.supernet import Supernet

IMAGE = (3, 8, 8)
CLASSES = 5


class Chain(nn.Module):
    """A stem, a residual block, a down-sampling depthwise pair, a concatenation and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.inner_bn = nn.BatchNorm2d(width)
        self.outer = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.outer_bn = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        self.expand_bn = nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(2 * width)
        self.left = nn.Conv2d(2 * width, width, 1)
        self.right = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(2 * width * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_bn(self.stem(x)))
        y = functional.relu(self.inner_bn(self.inner(x)), inplace=True)
        x = functional.relu(x + self.outer_bn(self.outer(y)))
        x = functional.relu(self.expand_bn(self.expand(x)))
        x = functional.silu(self.depthwise_bn(self.depthwise(x)))
        x = torch.cat([functional.relu(self.left(x)), functional.relu(self.right(x))], 1)
        x = functional.adaptive_avg_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))


class Toy(nn.Module):
    """Three layers with a gene each."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.a_bn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 9, 3, stride=2, padding=1, bias=False)
        self.b_bn = nn.BatchNorm2d(9)
        self.c = nn.Conv2d(9, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a_bn(self.a(x)))
        x = functional.relu(self.b_bn(self.b(x)))
        return self.head(functional.relu(self.c(x)).mean((2, 3)))


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def supernet(module: nn.Module | None = None, cuts: tuple[str, ...] | None = None, **grid: float) -> Supernet:
    """The supernet of a network with random statistics."""
    module = randomise((Chain() if module is None else module).double(), 0).eval()
    traced = trace(module, (images(2),))
    return Supernet(traced, Space.of(couple(traced), **grid), cuts)  # type: ignore[arg-type]
