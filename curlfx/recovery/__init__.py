"""Training: a dense network from scratch, or a slim one back to the accuracy of its teacher."""

from curlfx.recovery.batches import EpochLoader, Loader
from curlfx.recovery.checkpoint import Checkpoint, EpochRecord
from curlfx.recovery.evaluate import evaluate
from curlfx.recovery.fit import FitResult, fit
from curlfx.recovery.overparam import Overparam, fit_expanded
from curlfx.recovery.processes import Processes, joined, processes
from curlfx.recovery.recalibrate import recalibrate
from curlfx.recovery.recipes import RECIPES, Recipe
from curlfx.recovery.recover import RecoveryResult, TrainingData, recover, refine
from curlfx.recovery.settings import TrainSettings
from curlfx.recovery.soft_labels import SoftLabels, teacher_logits

__all__ = [
    "RECIPES",
    "Checkpoint",
    "EpochLoader",
    "EpochRecord",
    "FitResult",
    "Loader",
    "Overparam",
    "Processes",
    "Recipe",
    "RecoveryResult",
    "SoftLabels",
    "TrainSettings",
    "TrainingData",
    "evaluate",
    "fit",
    "fit_expanded",
    "joined",
    "processes",
    "recalibrate",
    "recover",
    "refine",
    "teacher_logits",
]
