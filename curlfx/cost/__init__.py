"""MACs and parameters per node, per coupling group and for any keep set."""

from curlfx.cost.latency import LatencyModel, PredictionError
from curlfx.cost.macs import macs, params
from curlfx.cost.model import Cost, CostModel, Saving

__all__ = ["Cost", "CostModel", "LatencyModel", "PredictionError", "Saving", "macs", "params"]
