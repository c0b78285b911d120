"""Small networks that each show one thing about tracing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curlfx.graph import TracedModel


class Small(nn.Module):
    """Convolution, normalisation, dropout, linear."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4, momentum=momentum)
        self.drop = nn.Dropout(0.25)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.drop(x.mean((2, 3))))


class Auxiliary(Small):
    """A head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        if self.training:
            return y, self.aux(x.mean((2, 3)))
        return y


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1, 1, 1) > self.drop_prob)


class Dropping(Small):
    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList([DropPath(0.1), DropPath(0.2), DropPath(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        for path in self.paths:
            x = path(x)
        return super().forward(x)


class Tied(nn.Module):
    """One parameter under two names, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = nn.Linear(5, 5, bias=False)
        self.b.weight = self.a.weight
        self.bn = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.b(self.bn(self.a(x))))


class Constants(nn.Module):
    """Tensors that no state dict has: a buffer that is not saved, a plain attribute, a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]), persistent=False)
        self.scale = torch.full((4,), 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.mask * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)


class Blocks(nn.Module):
    """Parts that export wraps in subgraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
            with torch.enable_grad():
                z = self.b(x)
        with torch.autocast("cpu", enabled=False):
            return self.c(y) + z


class Structured(nn.Module):
    """Two inputs, the second structured; a structured output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> dict[str, Any]:
        return {"out": self.fc(x) + more["shift"], "pair": (x, more["shift"].relu()), "batch": x.shape[0]}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class FixedBatch(nn.Module):
    """Takes a batch of two and no other."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 2:
            raise ValueError("want two images")
        return x.view(2, -1) * 2


class AlwaysDropping(nn.Module):
    """Dropout that stays on in inference, and one that stays off in training."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5) + functional.dropout(x, 0.5, training=False)


def randomise(module: nn.Module) -> nn.Module:
    """Random statistics and affine parameters, never the 0 and 1 of initialisation."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * 0.5)
        for name, tensor in module.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return module


def gradient_steps(module: nn.Module, inputs: list[Tensor], loss: Callable[[Any], Tensor]) -> None:
    """SGD with momentum, one step per input, in training mode."""
    module.train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for x in inputs:
        optimiser.zero_grad()
        loss(module(x)).backward()
        optimiser.step()


def targets(traced: TracedModel) -> list[str]:
    return [str(node.target) for node in traced.graph.nodes]


class OneImage(nn.Module):
    """Takes one image and no more."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 12) * 2
