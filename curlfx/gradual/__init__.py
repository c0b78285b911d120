"""Gradual pruning: channels go while a network is trained, at fixed intervals."""

from curlfx.gradual.pruner import GradualPruner, PruneStep
from curlfx.gradual.schedule import Schedule
from curlfx.gradual.supplement import Pruning

__all__ = ["GradualPruner", "PruneStep", "Pruning", "Schedule"]
