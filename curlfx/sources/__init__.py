"""From specifications to objects: networks, weights and images."""

from curlfx.sources.models import input_shape, load_model
from curlfx.sources.weights import load_weights

__all__ = ["input_shape", "load_model", "load_weights"]
