"""The name under which passes know :class:`curlfx.graph.constants.Constants`."""

from curlfx.graph.constants import Constants

__all__ = ["Constants"]
