"""The KL scores as the definition says, the whole gated network once for every channel; what the tests share."""

import numpy as np
import torch
from torch import Tensor, nn

from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.passes.gate import GATES, Gate
from curlfx.progress import StepEvent
from tests.killed import Killed


class Pooled(nn.Module):
    """Two channels, averaged over pixels, then a linear layer: small enough to score by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
            self.fc.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Killer:
    """Follows the work and ends it after some steps."""

    def __init__(self, after: int = 10**9) -> None:
        self.after, self.steps = after, 0

    def on_step(self, event: StepEvent) -> None:
        self.steps += 1
        if self.steps > self.after:
            raise Killed


def traced_and_coupled(module: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[TracedModel, Coupling]:
    example = torch.randn(2, *shape, dtype=next(module.parameters()).dtype)
    traced = trace(module, (example,))
    return traced, couple(traced)


def naive(traced: TracedModel, coupling: Coupling, images: Tensor) -> dict[str, np.ndarray]:
    """``KL(softmax(masked) || softmax(intact))``, the mean over images and pixels."""
    averaged = any(group.statistics_change for group in coupling.groups)
    module = Gate(coupling, statistics="kept" if averaged else "all")(traced).module.eval()
    gates = module.get_buffer(GATES)

    def log_probabilities() -> Tensor:
        output = module(images)
        output = output["out"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
        return output.log_softmax(1)

    found = {}
    with torch.no_grad():
        intact = log_probabilities()
        for group in coupling.groups:
            values = []
            for channel in group.channels.tolist():
                gates[channel] = 0
                masked = log_probabilities()
                gates[channel] = 1
                values.append(float((masked.exp() * (masked - intact)).sum(1).mean()))
            found[group.id] = np.array(values)
    return found


def assert_same(found: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float = 1e-12) -> None:
    """Every score within an absolute tolerance; the scores of these networks lie between 1e-7 and 3."""
    assert set(found) == set(want)
    for group, values in want.items():
        np.testing.assert_allclose(found[group], values, rtol=0, atol=tolerance)
