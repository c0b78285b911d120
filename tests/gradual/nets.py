"""Small networks in float64 with random BatchNorm statistics, and batches to train them on."""

import copy
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from curlfx.graph import TracedModel, trace


class Block(nn.Module):
    """A residual block with a depthwise convolution inside."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = nn.functional.silu(self.bn2(self.conv2(y)))
        return x + self.bn3(self.conv3(y))


class Net(nn.Module):
    """A stem, a grouped convolution, a gated residual block and a head: 12 + 16 + 12 coupled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.block = Block(12, 16)
        self.last, self.bn2 = nn.Conv2d(12, 12, 3, groups=2), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.bn(self.stem(x))))
        return self.head(torch.sigmoid(self.bn2(self.last(x))).mean((2, 3)))


def make(seed: int = 0, network: type[nn.Module] = Net) -> TracedModel:
    """A network of its own, the same every time."""
    return copy.deepcopy(_made(seed, network))


@cache
def _made(seed: int, network: type[nn.Module]) -> TracedModel:
    torch.manual_seed(seed)
    model = randomise(network().double(), seed)
    return trace(model.eval(), (torch.randn(2, 3, 8, 8, dtype=torch.float64),))


def batches(epoch: int, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    return [
        (
            torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(5, (6,), generator=generator),
        )
        for _ in range(count)
    ]


def train_epoch(module: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    module.train()
    for images, labels in batches(epoch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
