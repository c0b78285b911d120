"""Parts of composed networks: features that weigh features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.parts_base import Map, Part, Wrapped, choice, convolution, layer
from tests.networks.parts_convolution import ACTIVATION, NORM

GATES = {"sigmoid": torch.sigmoid, "hardsigmoid": functional.hardsigmoid, "tanh": torch.tanh}


@dataclass(frozen=True, repr=False)
class Squeeze(Part):
    """Squeeze-and-excitation with 1x1 convolutions, with linear layers, or with one convolution along the channels."""

    squeeze: int = choice(3, 1, 2, 4)
    how: str = choice("convolution", "linear", "along")
    gate: str = choice(*GATES)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        c, gate = shape.channels, GATES[self.gate]
        axes, ones = tuple(range(2, 2 + shape.dims)), [1] * shape.dims
        if self.how == "convolution":
            reduce, expand = convolution(shape.dims, c, self.squeeze, 1), convolution(shape.dims, self.squeeze, c, 1)

            def forward(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
                return x * gate(g(torch.relu(f(x.mean(axes, keepdim=True)))))

            return Wrapped(forward, reduce, expand), shape
        if self.how == "linear":

            def through(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
                return x * gate(g(torch.relu(f(x.mean(axes))))).view(x.shape[0], -1, *ones)

            return Wrapped(through, nn.Linear(c, self.squeeze), nn.Linear(self.squeeze, c)), shape

        def along(x: Tensor, f: nn.Module) -> Tensor:  # every channel reads its neighbours (ECA): nothing can go
            return x * gate(f(x.mean(axes).unsqueeze(1))).reshape(x.shape[0], c, *ones)

        return Wrapped(along, nn.Conv1d(1, 1, 3, padding=1, bias=False)), shape


@dataclass(frozen=True, repr=False)
class Selective(Part):
    """Two branches weighed against each other by a softmax over branches (SKNet)."""

    squeeze: int = choice(3, 1, 2)
    layout: str = choice("stack", "view", "chunk")
    norm: str = choice(*NORM)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        axes = tuple(range(2, 2 + dims))
        branches = [layer(dims, c, c, self, kernel) for kernel in (3, 1)]
        reduce, expand = convolution(dims, c, self.squeeze, 1), convolution(dims, self.squeeze, 2 * c, 1)

        def forward(x: Tensor, a: nn.Module, b: nn.Module, f: nn.Module, g: nn.Module) -> Tensor:
            one, other = a(x), b(x)
            weights = g(torch.relu(f((one + other).mean(axes, keepdim=True))))
            if self.layout == "chunk":
                left, right = weights.chunk(2, 1)
                share = torch.sigmoid(left - right)
                return one * share + other * (1 - share)
            if self.layout == "view":
                weights = weights.view(x.shape[0], 2, c, *([1] * dims)).softmax(1)
                return one * weights[:, 0] + other * weights[:, 1]
            weights = weights.unflatten(1, (2, -1)).softmax(1)
            return (torch.stack([one, other], 1) * weights).sum(1)

        return Wrapped(forward, *branches, reduce, expand), shape


@dataclass(frozen=True, repr=False)
class Gate(Part):
    """Gates without a bottleneck: by a channel's mean, by one map for all channels, by the mean and maximum of all."""

    how: str = choice("mean", "pixel", "spatial", "response", "softmax")

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        axes = tuple(range(2, 2 + dims))
        if self.how == "mean":
            return Wrapped(lambda x: x * torch.sigmoid(x.mean(axes, keepdim=True))), shape
        if self.how == "pixel":
            maps = [convolution(dims, c, 1), convolution(dims, c, 1, 1)]
            return Wrapped(lambda x, f, g: x * torch.sigmoid(f(x)) + g(x), *maps), shape
        if self.how == "spatial":  # CBAM: mean and maximum run across the channels
            return (
                Wrapped(
                    lambda x, f: x * torch.sigmoid(f(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))),
                    convolution(dims, 2, 1),
                ),
                shape,
            )
        if self.how == "softmax":  # a global context: softmax over pixels, then a sum over them (GCNet)

            def context(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
                weights = f(x).flatten(2).softmax(-1)
                return x + g(torch.matmul(x.flatten(2), weights.transpose(1, 2)).view(x.shape[0], c, *([1] * dims)))

            return Wrapped(context, convolution(dims, c, 1, 1), convolution(dims, c, c, 1)), shape

        def response(x: Tensor) -> Tensor:  # ConvNeXt V2: a channel's norm over the mean of all
            norms = x.square().sum(axes, keepdim=True).add(0.1).sqrt()
            return x + x * norms / (norms.mean(1, keepdim=True) + 0.1)

        return Wrapped(response), shape


@dataclass(frozen=True, repr=False)
class GatedConv(Part):
    """One half of the channels gates the other: glu, chunk and multiply, or an uneven split of value and gate."""

    width: int = choice(3, 1, 2, 4)
    how: str = choice("glu", "chunk", "split")
    norm: str = choice(*NORM)
    activation: str = choice(*ACTIVATION)

    def build(self, shape: Map) -> tuple[nn.Module, Map]:
        dims, c = shape.dims, shape.channels
        extra = 1 if self.how == "split" else 0
        expand = layer(dims, c, 2 * self.width + extra, self, 1)
        project = convolution(dims, self.width, c, 1)

        def forward(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
            y = f(x)
            if self.how == "glu":
                return x + g(functional.glu(y, dim=1))
            if self.how == "chunk":
                value, gate = y.chunk(2, 1)
                return x + g(value * functional.silu(gate))
            value, gate, common = torch.split(y, [self.width, self.width, 1], dim=1)
            return x + g(value * torch.sigmoid(gate) * common)

        return Wrapped(forward, expand, project), shape
