"""Which zoos there are, and what each needs."""

import importlib.util
from collections.abc import Callable

from zoo import Entry, torchvision_models
from zoo_dense import dense_models
from zoo_detection import detection_models
from zoo_huggingface import huggingface_models
from zoo_timm import timm_models

__all__ = ["NEEDS", "ZOOS", "missing"]

ZOOS: dict[str, Callable[[], dict[str, Entry]]] = {
    "dense": dense_models,
    "detection": detection_models,
    "huggingface": huggingface_models,
    "timm": timm_models,
    "torchvision": torchvision_models,
}
NEEDS = {"detection": "torchvision", "huggingface": "transformers", "timm": "timm", "torchvision": "torchvision"}
"""The package a zoo comes from; pip installs it under the same name."""


def missing(zoo: str) -> str:
    """The package that must be installed first; "" where all is there."""
    package = NEEDS.get(zoo, "")
    return package if package and importlib.util.find_spec(package) is None else ""
