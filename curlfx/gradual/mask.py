"""Masks: the elements of channels that are gone are zero, in weights and in what an optimiser remembers of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from curlfx.coupling import Coupling
from curlfx.errors import UsageError
from curlfx.graph.traced import TracedModel
from curlfx.importance.scores import Values
from curlfx.labels.compact import Bools, Ints
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning.units import first_channels, kept_positions, make_units

Keep = Mapping[str, Sequence[int]]
BOUND = 1e-9
"""Largest relative error, in float64, between a masked network and the slim one."""


class Masks:
    """Where the parameters of a network have elements of channels that are gone.

    A convolution loses the rows of the channel and its readers their columns, a normalisation scale and shift, so the
    channel reaches nothing. Running statistics stay: a scale of zero makes them idle.

    Args:
        traced: The network; its parameters are masked in place.
        coupling: Its channels.
    """

    def __init__(self, traced: TracedModel, coupling: Coupling) -> None:
        self._labels = labelled_parameters(traced, coupling)
        self._cells = coupling.cells
        self._dead: list[tuple[nn.Parameter, Tensor]] = []

    def set(self, alive: Bools) -> None:
        """Choose what is gone. Shapes: alive ``(N + 1,)``, as `Coupling.alive` makes it."""
        cells = self._cells.alive(alive)
        self._dead = []
        for parameter, arrays in self._labels:
            dead = ~surviving(arrays, cells)
            if dead.any():
                self._dead.append((parameter, torch.from_numpy(dead).to(parameter.device)))

    @torch.no_grad()
    def apply(self) -> None:
        """Make the weights of what is gone zero."""
        for parameter, dead in self._dead:
            parameter.masked_fill_(dead.to(parameter.device), 0)

    @torch.no_grad()
    def forget(self, optimizer: Optimizer) -> None:
        """Make what an optimiser remembers of them zero."""
        for parameter, dead in self._dead:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(dead.to(value.device), 0)


def labelled_parameters(traced: TracedModel, coupling: Coupling) -> list[tuple[nn.Parameter, tuple[Ints, ...]]]:
    """Every parameter that has channels, once, with its cell numbers."""
    found: dict[int, tuple[nn.Parameter, tuple[Ints, ...]]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            tensor, arrays = traced.parameter(str(node.target)), coupling.parameter_labels(str(node.target))
            if isinstance(tensor, nn.Parameter) and arrays:
                found[id(tensor)] = tensor, arrays
    return list(found.values())


def surviving(arrays: Sequence[Ints], cells: Bools) -> Bools:
    """Which elements of a tensor stay, broadcastable to its shape; ``cells`` says which cells stay."""
    mask = np.ones([1] * arrays[0].ndim, dtype=bool)
    for array in arrays:
        mask = mask & cells[array]
    return mask


def check_maskable(traced: TracedModel, coupling: Coupling) -> None:
    """Refuse a network in which zero weights are not the same as channels that are gone.

    Half of every group goes from a copy in float64 with other running statistics, by masks and by slimming; both must
    give the same outputs. Raises: UsageError.
    """
    if not coupling.groups:
        return
    units = make_units(coupling, first_channels(coupling))
    keep = kept_positions(coupling, units, units.sizes // 2)
    double = copy.deepcopy(traced).to(torch.float64)
    _shake(double.module)
    slim, _ = run(double, [Slim(coupling, keep)], own_weights=True)
    masks = Masks(double, coupling)
    masks.set(coupling.alive(keep))
    masks.apply()
    with torch.inference_mode():
        error = difference(double.module(*double.example_inputs), slim.module(*slim.example_inputs))
    if not error <= BOUND:
        changed = [group.id for group in coupling.groups if group.statistics_change]
        why = f"; a normalisation averages over the channels of {', '.join(changed[:3])}" if changed else ""
        raise UsageError(
            f"masked training: zero weights are not the same as no channels in this network, off by {error:.1e}{why}; "
            "want physical=True, which takes them away at every step"
        )


def difference(wanted: object, found: object) -> float:
    """Largest difference of two outputs, as a share of the largest wanted one; infinite for other shapes.

    NaN where one of them is no number.
    """
    worst: Values = np.zeros(1)
    for one, other in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True):
        if isinstance(one, Tensor) and one.is_floating_point() and one.numel():
            if not isinstance(other, Tensor) or one.shape != other.shape:
                return math.inf
            largest = float((one - other).abs().max()) / max(float(one.abs().max()), 1e-300)
            worst = np.append(worst, largest)
    return float(worst.max())


def _shake(module: nn.Module) -> None:
    """Give normalisations running statistics that are not those of initialisation, which would hide errors."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in module.named_buffers():
        noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64).to(buffer.device)
        if name.endswith("running_mean"):
            buffer.copy_(buffer + noise - 0.5)
        elif name.endswith("running_var"):
            buffer.copy_(buffer * (0.5 + noise))
