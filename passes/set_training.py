"""Switch a network between training and inference."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from curlfx.graph import TracedModel
from curlfx.graph.modes import set_mode
from curlfx.passes.base import Pass


@dataclass(frozen=True)
class SetTraining(Pass):
    """Set the ``training`` argument of batch normalisation, dropout and their kin, as ``module.train(mode)`` does.

    Attributes:
        mode: True for training: batch statistics, running averages and batch counters updated, dropout on.
    """

    name: ClassVar[str] = "set-training"
    mode: bool

    def rewrite(self, traced: TracedModel) -> bool:
        """Flip every node that has a mode, except those that the model computes alike in both."""
        flipped = set_mode(traced.graph, self.mode)
        told = traced.module.training != self.mode
        nn.Module.train(traced.module, self.mode)
        return flipped or told
