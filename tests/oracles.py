"""Independent answers to "what should the slim network compute?", and one laboratory per traced network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.trial import flatten_outputs
from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, show, trace
from curlfx.passes.gate import Gate, set_gates
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim

__all__ = ["Keep", "Laboratory", "closed_by_hand", "narrowed", "narrowed_state", "train_a_step"]

Keep = Mapping[str, Sequence[int]]


@dataclass
class Laboratory:
    """One network, traced and coupled once, with its gated twins.

    Attributes:
        traced: The network under test.
        coupling: Its coupling groups.
        text: What `show` printed right after tracing.
    """

    traced: TracedModel
    coupling: Coupling
    text: str
    _gated: dict[str, TracedModel] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, inputs: tuple[Tensor, ...]) -> "Laboratory":
        """Trace and couple a module."""
        traced = trace(module, inputs)
        return cls(traced, couple(traced), show(traced))

    def slim(self, keep: Keep) -> TracedModel:
        """The physically narrower network."""
        return run(self.traced, [Slim(self.coupling, {group: tuple(kept) for group, kept in keep.items()})])[0]

    def gated(self, keep: Keep, *, statistics: str = "all") -> TracedModel:
        """The intact network with the channels outside the keep set multiplied by zero where they are read."""
        if statistics not in self._gated:
            self._gated[statistics] = run(self.traced, [Gate(self.coupling, statistics=statistics)], own_weights=False)[
                0
            ]
        twin = self._gated[statistics]
        if not self.coupling.total:
            return twin  # frozen whole: there is nothing to gate
        set_gates(twin.module, torch.from_numpy(self.coupling.alive(keep)))
        return twin

    def changes_statistics(self, keep: Keep) -> bool:
        """Whether a group of the keep set is normalised across its channels."""
        return any(group.statistics_change for group in self.coupling.groups if group.id in keep)


def closed_by_hand(module: nn.Module, rows: Mapping[str, Iterable[int]], removed: Iterable[int]) -> nn.Module:
    """Zero rows of parameters of a user's module: the oldest way of "removing" channels, known to no pass.

    Exact where every parameter between a channel's producer and its reader that could turn 0 into something else
    (bias, BatchNorm affine and running mean) is among the rows, and its activation keeps 0.

    Args:
        module: Changed in place.
        rows: Parameters and buffers to zero, by name; with the offsets at which the channels sit on their first axis.
        removed: Channels to close.
    """
    state = module.state_dict(keep_vars=True)
    closed = list(removed)
    with torch.no_grad():
        for name, offsets in rows.items():
            for offset in offsets:
                state[name][[channel + offset for channel in closed]] = 0
    return module


def narrowed_state(state: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, Sequence[int]]]) -> dict[str, Tensor]:
    """A state dict with the given indices of the given axes picked out; written by hand, per network, in the test."""
    result = dict(state)
    for name, picks in axes.items():
        for axis, indices in picks.items():
            result[name] = result[name].index_select(axis, torch.tensor(list(indices)))
    return result


def narrowed(
    module: nn.Module, state: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, Sequence[int]]]
) -> nn.Module:
    """A network built narrow from the start, loaded with picked weights: a dense evaluation on the kept channels."""
    module = module.double().eval()
    module.load_state_dict(narrowed_state(state, axes))
    return module


def train_a_step(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Loss before and after one gradient step in train mode.

    Returns:
        Mean squared output before and after, on the same inputs; the second is smaller for a small enough step.
    """
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same dropout in both evaluations
        return torch.stack([output.square().mean() for output in flatten_outputs(module(*inputs))]).sum()

    before = loss()
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    norm = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None) ** 0.5
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= gradient * (1e-4 / max(norm, 1e-12))
        after = loss()
    module.eval()
    return float(before.detach()), float(after)
