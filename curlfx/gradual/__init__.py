"""Gradual pruning: channels go while a network is trained, at fixed intervals."""

from curlfx.gradual.hooks import PrunerHooks
from curlfx.gradual.pruner import GradualPruner, PruneStep
from curlfx.gradual.schedule import Schedule

__all__ = ["GradualPruner", "PruneStep", "PrunerHooks", "Schedule"]
