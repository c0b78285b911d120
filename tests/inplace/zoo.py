"""Networks of torchvision, small, and what the tests do to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

from benchmarks.trial import randomise
from curlfx.coupling import couple
from curlfx.graph import TracedModel, trace
from curlfx.importance import score
from curlfx.planning import SlimPlan, plan_from_widths
from curlfx.planning.apply import slim

SHARE: Mapping[str, float | int] = MappingProxyType({"*": 0.6})


def image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


@dataclass(frozen=True)
class Plan:
    """A network's graph, a plan with random channels, and what the plan makes of the graph."""

    traced: TracedModel
    made: SlimPlan
    slim: TracedModel


def planned(net: nn.Module, inputs: Any, widths: Mapping[str, float | int] = SHARE, forward: Any = None) -> Plan:
    traced = trace(net, inputs, forward=forward)
    coupling = couple(traced)
    made = plan_from_widths(traced, coupling, score(traced, coupling, "random", seed=3), widths)
    return Plan(traced, made, slim(traced, made, coupling))


def _efficientnet() -> nn.Module:
    mobile = functools.partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    setting = [FusedMBConvConfig(2, 3, 1, 8, 8, 1), mobile(4, 3, 2, 8, 16, 2), mobile(4, 5, 2, 16, 24, 1)]
    return EfficientNet(setting, dropout=0.2, stochastic_depth_prob=0.2, last_channel=48, num_classes=5)


def _vgg() -> nn.Module:
    net = VGG(make_layers([8, "M", 16, "M"], batch_norm=True), init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(16 * 7 * 7, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5))
    return net


def _mobilenet() -> nn.Module:
    return models.MobileNetV2(5, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]])


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=4),
    "mobilenet_v2": _mobilenet,
    "densenet": lambda: DenseNet(4, (2, 2), 8, 2, num_classes=5),
    "efficientnet": _efficientnet,
    "vgg_bn": _vgg,
}

WHOLE: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(num_classes=5),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=5),
    "densenet121": lambda: models.densenet121(num_classes=5),
    "efficientnet_b0": lambda: models.efficientnet_b0(num_classes=5),
    "vgg11_bn": lambda: models.vgg11_bn(num_classes=5),
    "convnext_tiny": lambda: models.convnext_tiny(num_classes=5),
}


def vision_transformer() -> nn.Module:
    return randomise(models.VisionTransformer(32, 8, 1, 4, 32, 48, num_classes=5))


def swin() -> nn.Module:
    return randomise(models.SwinTransformer([2, 2], 16, [1, 1], [2, 4], [4, 4], num_classes=5))
