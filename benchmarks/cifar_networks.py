"""Networks of torchvision for images of 32 × 32, as MODEL: ``benchmarks/cifar_networks.py:resnet18``, ``:vgg16_bn``."""

import torchvision
from torch import nn


def resnet18(num_classes: int = 10) -> nn.Module:
    """The ResNet-18 of torchvision with the stem that is usual for CIFAR: a 3 × 3 convolution and no pooling."""
    network = torchvision.models.resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def vgg16_bn(num_classes: int = 10) -> nn.Module:
    """The VGG-16 of torchvision with BatchNorm, without its large head: one hidden layer of 512, as usual for CIFAR."""
    network = torchvision.models.vgg16_bn(num_classes=num_classes)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes))
    return network
