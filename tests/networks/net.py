"""A network written in one expression, so that a test can show all of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trial import randomise

IMAGE = (3, 4, 4)
TOKENS = (5, 3)


class Net(nn.Module):
    """Named layers and the function that calls them.

    Args:
        function: Gets the network and its inputs.
        layers: Submodules, parameters and buffers by name.
    """

    def __init__(self, function: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def prepared(net: nn.Module) -> nn.Module:
    """The network in float64 and eval mode, no two channels alike."""
    return randomise(net.double()).eval()


def drawn(*shapes: tuple[int, ...], batch: int = 2) -> tuple[Tensor, ...]:
    """Normally distributed float64 inputs; shapes without the batch axis."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


def pointwise(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    """A 1x1 convolution without bias: the shortest layer that makes channels."""
    return nn.Conv2d(inputs, outputs, 1, bias=False, **options)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias."""
    return nn.Linear(inputs, outputs, bias=False)


def weight(*shape: int) -> nn.Parameter:
    """A parameter that belongs to no layer."""
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))


def between(function: Callable[..., Any], width: int = 8, outputs: int = 8, **layers: Any) -> Net:
    """``h(function(net, a(image)))``: channels that ``a`` makes, what is done to them, and ``h`` that reads them."""
    return Net(lambda net, x: net.h(function(net, net.a(x))), a=pointwise(3, width), h=pointwise(outputs, 2), **layers)


def tokens(function: Callable[..., Any], width: int = 8, outputs: int = 8, **layers: Any) -> Net:
    """As `between`, for tokens ``(N, 5, 3)`` and linear layers."""
    return Net(lambda net, x: net.h(function(net, net.a(x))), a=dense(3, width), h=dense(outputs, 2), **layers)
