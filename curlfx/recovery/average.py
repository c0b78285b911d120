"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of every floating-point parameter and buffer; other buffers are copied.

    The decay grows as ``(1 + t) / (10 + t)`` up to ``decay``, so that the first steps do not weigh for ever.
    Source: Polyak & Juditsky 1992; the ramp is that of `tf.train.ExponentialMovingAverage`.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay, self._steps = module, decay, 0
        self._average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, tensor in self._module.state_dict().items():
            kept = self._average[name]
            if tensor.is_floating_point():
                kept.lerp_(tensor, 1.0 - decay)
            else:
                kept.copy_(tensor)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the module."""
        for name, tensor in self._module.state_dict().items():
            tensor.copy_(self._average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the average inside; with its own weights again afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._module.state_dict().items():
                    tensor.copy_(own[name])

    def state(self) -> dict[str, object]:
        """What a checkpoint needs."""
        return {"steps": self._steps, "average": self._average}

    def restore(self, steps: int, average: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self._steps = steps
        for name, tensor in average.items():
            self._average[name].copy_(tensor)
