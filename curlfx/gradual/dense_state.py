"""The state of the dense network, to put what a slim one has learnt back into its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curlfx.coupling import Coupling
from curlfx.gradual.shrink import widened
from curlfx.graph.traced import TracedModel
from curlfx.labels.compact import Bools, Ints


@dataclass(frozen=True)
class DenseState:
    """What a dense network's state looks like, to put slim tensors back into it.

    Attributes:
        shapes: Shape of every tensor of the state dict.
        labels: Cell numbers of those that have channels.
        buffers: Values of those that are no parameters.
    """

    shapes: dict[str, tuple[int, ...]]
    labels: dict[str, tuple[Ints, ...]]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, traced: TracedModel, coupling: Coupling) -> DenseState:
        """Of a network that nothing has gone from yet."""
        names = [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
        known = {id(traced.parameter(name)): coupling.parameter_labels(name) for name in names}
        state = traced.module.state_dict(keep_vars=True)
        labels = {name: arrays for name, tensor in state.items() if (arrays := known.get(id(tensor)))}
        buffers = {name: state[name].clone() for name in labels if not isinstance(state[name], nn.Parameter)}
        return cls({name: tuple(tensor.shape) for name, tensor in state.items()}, labels, buffers)

    def filled(self, state: Mapping[str, Tensor], cells: Bools) -> dict[str, Tensor]:
        """The dense state that does what a slim one does.

        What is gone is zero in parameters and as it was in buffers. Whole numbers say which channels are read: those
        of the dense network are.
        """
        result = {}
        for name, shape in self.shapes.items():
            tensor, dense = state[name].detach(), self.buffers.get(name)
            if name not in self.labels:
                result[name] = tensor.clone()
            elif dense is not None and not dense.is_floating_point():
                result[name] = dense.clone()
            else:
                wide = torch.zeros(shape, dtype=tensor.dtype) if dense is None else dense.to(tensor.dtype)
                result[name] = widened(tensor, wide, self.labels[name], cells)
        return result
