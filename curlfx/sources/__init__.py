"""From specifications to objects: networks, weights and images."""

from curlfx.sources.data import from_datasets, load_data
from curlfx.sources.detection import detection_forward, forward_for
from curlfx.sources.fit import check_fit, class_scores
from curlfx.sources.images import Augmentation, Loader, Normalisation
from curlfx.sources.models import input_shape, load_model
from curlfx.sources.offline import write_expanded
from curlfx.sources.source import DataRequest, DataSource
from curlfx.sources.weights import load_weights, read_weights

__all__ = [
    "Augmentation",
    "DataRequest",
    "DataSource",
    "Loader",
    "Normalisation",
    "check_fit",
    "class_scores",
    "detection_forward",
    "forward_for",
    "from_datasets",
    "input_shape",
    "load_data",
    "load_model",
    "load_weights",
    "read_weights",
    "write_expanded",
]
