"""Networks of our own, as plain torch modules: ``curlfx:NAME`` in a model specification."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from curlfx.models.digits import DigitsNet, digits
from curlfx.models.resnet_cifar import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "digits": digits,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet44": resnet44,
        "resnet56": resnet56,
        "resnet110": resnet110,
    }
)
"""Name to factory; every factory takes ``num_classes``."""

__all__ = ["MODELS", "CifarResNet", "DigitsNet", "digits", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]
