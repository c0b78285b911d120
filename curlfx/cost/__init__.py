"""MACs and parameters per node, per coupling group and for any keep set."""

from curlfx.cost.macs import macs, params

__all__ = ["macs", "params"]
