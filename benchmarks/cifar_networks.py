"""Networks of torchvision for images of 32 × 32, as MODEL: ``benchmarks/cifar_networks.py:resnet18``."""

import torchvision
from torch import nn


def resnet18(num_classes: int = 10) -> nn.Module:
    """The ResNet-18 of torchvision with the stem that is usual for CIFAR: a 3 × 3 convolution and no pooling."""
    network = torchvision.models.resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network
