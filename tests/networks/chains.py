"""Fixture networks without joins: chains of every kind of layer, several heads, several readers of one parameter."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.case import Case


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; "same" padding."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class PlainChain(nn.Module):
    """conv-bn-relu twice, pooling, linear: the smallest classifier."""

    def __init__(self, widths: Sequence[int] = (6, 8), classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1, bias=True)
        self.bn2 = nn.BatchNorm2d(widths[1])
        self.fc = nn.Linear(widths[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class FlattenLinear(nn.Module):
    """Every channel becomes H*W features of the first linear layer, as in AlexNet and VGG."""

    def __init__(self, width: int = 6, hidden: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(width * 16, hidden), nn.ReLU(), nn.Linear(hidden, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class TwoHead(nn.Module):
    """One trunk, a classifier and a dense prediction; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv_bn(3, 6), conv_bn(6, 8))
        self.classify = nn.Linear(8, 4)
        self.locate = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.classify(x.mean((-2, -1))), self.locate(x)


class DictOutput(TwoHead):
    """Structured output, as in torchvision's segmentation networks."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        classes, places = super().forward(x)
        return {"out": functional.interpolate(places, scale_factor=2.0, mode="bilinear"), "classes": classes}


class SharedWeights(nn.Module):
    """One weight read by two convolutions, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.shared = nn.Parameter(torch.randn(6, 6, 3, 3) * 0.2)
        self.bias1 = nn.Parameter(torch.zeros(6))
        self.bias2 = nn.Parameter(torch.zeros(6))
        self.inner = conv_bn(6, 5)
        self.back = nn.Conv2d(5, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(functional.conv2d(self.stem(x), self.shared, self.bias1, padding=1))
        x = self.back(self.inner(x))
        x = torch.relu(functional.conv2d(x, self.shared, self.bias2, padding=2, dilation=2))
        return self.fc(x.mean((2, 3)))


class CalledTwice(nn.Module):
    """One module called twice: its outputs meet its own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.again = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.after = conv_bn(6, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self.again(self.again(self.stem(x)))).mean((2, 3)))


class BnBeforeConv(nn.Module):
    """Pre-activation: BatchNorm and ReLU stand before the convolutions (and before the classifier)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Sigmoid()
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.stem(x)).amax((2, 3)))


class ParametersOutside(nn.Module):
    """Parameters and buffers that belong to no layer: layer scale, additive bias, a channel-wise constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.offset = nn.Parameter(torch.zeros(1, 6, 1, 1))
        self.register_buffer("mean", torch.linspace(-1, 1, 6).view(1, 6, 1, 1))
        self.conv2 = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x)) * self.scale + self.offset
        return self.fc(torch.relu(self.conv2(x) - self.mean).mean((2, 3)))


class UnknownOp(nn.Module):
    """An op without a rule in the middle: what it touches is frozen, the rest is not."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(conv_bn(3, 6), nn.Conv2d(6, 4, 1))
        self.after = conv_bn(4, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = torch.linalg.matrix_exp(x * 0.1)
        return self.fc(self.after(x).mean((2, 3)))


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation: every filter is normalised over its own inputs before use."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (deviation + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def chain(*layers: nn.Module, width: int = 8) -> nn.Sequential:
    """Layers, global pooling, linear."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def _conv_without_bn() -> nn.Module:
    return chain(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 8, 3, bias=False), nn.SiLU())


def _conv_with_bias() -> nn.Module:
    return chain(nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 8, 3), nn.Hardtanh())


def _prelu() -> nn.Module:
    return chain(nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 8, 3), nn.PReLU())


def _pools() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.LocalResponseNorm(1),
        nn.Conv2d(6, 8, 3, padding=1), nn.LeakyReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip


def _paddings() -> nn.Module:
    return chain(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(6, 6, 3),
        nn.ReplicationPad2d(1), nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), nn.Tanh(),
        nn.Upsample(scale_factor=2),
    )  # fmt: skip


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 8, 3), nn.ELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def _conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(6, 8, (1, 3, 3)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def _perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(48, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Linear(10, 8, bias=False),
        nn.Tanh(),
        nn.Linear(8, 4),
    )


def _weight_standardisation() -> nn.Module:
    return chain(
        StandardisedConv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), StandardisedConv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3),
    )  # fmt: skip


def _spectral(norm: Callable[..., nn.Module]) -> nn.Module:
    return chain(norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), norm(nn.Conv2d(6, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 1))


CASES = (
    Case("plain_chain", PlainChain, free=2),
    Case("flatten_linear", FlattenLinear, free=2),
    Case("two_head", TwoHead, free=2),
    Case("dict_output", DictOutput, free=2),
    Case("shared_weights", SharedWeights, free=2),
    Case("called_twice", CalledTwice, free=2),
    Case("bn_before_conv", BnBeforeConv, free=2),
    Case("parameters_outside", ParametersOutside, free=2),
    Case("unknown_op", UnknownOp, free=2),
    Case("conv_without_bn", _conv_without_bn, free=2),
    Case("conv_with_bias", _conv_with_bias, free=2),
    Case("prelu", _prelu, free=2),
    Case("pools", _pools, free=1),
    Case("paddings", _paddings, free=3),
    Case("conv1d", _conv1d, shapes=((4, 12),), free=2),
    Case("conv3d", _conv3d, shapes=((2, 4, 6, 6),), free=2),
    Case("perceptron", _perceptron, shapes=((3, 4, 4),), free=2),
    Case("weight_standardisation", _weight_standardisation, free=1),
    Case("weight_norm", partial(_spectral, nn.utils.parametrizations.weight_norm), free=1),
)
