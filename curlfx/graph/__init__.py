"""From a model to a checked FX graph with shapes, source lines and a stable printed form."""

from curlfx.graph.clean import sweep
from curlfx.graph.printer import show
from curlfx.graph.shapes import propagate, shape_of
from curlfx.graph.source import where
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel, TracedModule
from curlfx.graph.verify import check, is_dead

__all__ = [
    "TracedModel",
    "TracedModule",
    "check",
    "is_dead",
    "propagate",
    "shape_of",
    "show",
    "sweep",
    "trace",
    "where",
]
