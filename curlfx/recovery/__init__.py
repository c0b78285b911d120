"""Training: a dense network from scratch, or a slim one back to the accuracy of its teacher."""

from curlfx.recovery.batches import EpochLoader, Loader
from curlfx.recovery.checkpoint import Checkpoint, EpochRecord
from curlfx.recovery.evaluate import evaluate
from curlfx.recovery.fit import FitResult, fit, recover
from curlfx.recovery.recalibrate import recalibrate
from curlfx.recovery.settings import TrainSettings

__all__ = [
    "Checkpoint",
    "EpochLoader",
    "EpochRecord",
    "FitResult",
    "Loader",
    "TrainSettings",
    "evaluate",
    "fit",
    "recalibrate",
    "recover",
]
