"""A fixed small network with the inputs it takes: what the property tests run over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.trial import randomise


@dataclass(frozen=True)
class Case:
    """One network of the fixture table.

    Attributes:
        name: Key of the table and test id.
        factory: Makes the network; widths are the caller's business.
        shapes: Input shapes without the batch axis.
        free: Number of coupling groups that must be found at least: a net that is frozen whole proves nothing.
        statistics: Whether a normalisation runs across free channels (LayerNorm, GroupNorm, ...), so that the gated
            network equals the slim one only when its statistics are taken over the kept channels.
        dynamic: Whether the network takes any batch size.
    """

    name: str
    factory: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8),)
    free: int = 1
    statistics: bool = False
    dynamic: bool = True

    def build(self, seed: int = 0) -> nn.Module:
        """The network in float64, eval mode, with random statistics and affine parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.factory()
        return randomise(module.double(), seed).eval()

    def inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Normally distributed float64 inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in self.shapes)

    def __str__(self) -> str:
        return self.name
