"""Fixture networks whose channels meet: residual adds, concatenation, splits, shuffles, skips."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.case import Case
from tests.networks.chains import conv_bn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: identity where shapes agree, else a strided 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return torch.relu(y)


class Bottleneck(nn.Module):
    """1x1, (grouped) 3x3, 1x1 and an identity shortcut."""

    def __init__(self, width: int, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(width, inner, 1),
            conv_bn(inner, inner, 3, groups=groups),
            nn.Conv2d(inner, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project without activation (MobileNetV2)."""

    def __init__(self, width: int, expansion: int = 2) -> None:
        super().__init__()
        inner = width * expansion
        self.body = nn.Sequential(
            conv_bn(width, inner, 1),
            conv_bn(inner, inner, 3, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class OptionA(nn.Module):
    """Shortcut without parameters: every second pixel, channels padded with zeros on both sides (CIFAR ResNets)."""

    def __init__(self, inputs: int = 4, outputs: int = 8) -> None:
        super().__init__()
        self.pad = (outputs - inputs) // 2
        self.body = nn.Sequential(
            conv_bn(inputs, outputs, 3, 2), nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)))


class Classifier(nn.Module):
    """Stem, body, pooling and linear, so that a body is all a fixture has to say."""

    def __init__(self, body: nn.Module, stem: int = 6, outputs: int | None = None) -> None:
        super().__init__()
        self.stem = conv_bn(3, stem)
        self.body = body
        self.fc = nn.Linear(outputs or stem, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class DenseBlock(nn.Module):
    """Every layer reads all that came before (DenseNet), BatchNorm on the concatenation."""

    def __init__(self, width: int, growth: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for more in growth:
            self.layers.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, more, 3, padding=1)))
            width += more

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Inception(nn.Module):
    """Parallel branches, one of them pooling, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = conv_bn(width, 4, 1)
        self.three = nn.Sequential(conv_bn(width, 3, 1), conv_bn(3, 5, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(width, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], 1)


class UNet(nn.Module):
    """Down, transposed convolution up, skip concatenation; dense prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = conv_bn(3, 6)
        self.down = conv_bn(6, 8, 3, 2)
        self.up = nn.ConvTranspose2d(8, 5, 2, 2)
        self.norm = nn.BatchNorm2d(5)
        self.depthwise = nn.ConvTranspose2d(5, 5, 3, padding=1, groups=5)
        self.decode = conv_bn(11, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encode(x)
        up = self.depthwise(torch.relu(self.norm(self.up(self.down(skip)))))
        return self.head(self.decode(torch.cat([skip, up], 1)))


class InputConcat(nn.Module):
    """The image itself is concatenated to a feature: labelled and frozen channels on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_bn(3, 6)
        self.second = conv_bn(9, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(torch.cat([x, self.first(x)], 1)).mean((2, 3)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel ``i * n + j`` goes to ``j * groups + i``."""
    batch, channels, height, width = x.shape
    return (
        x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    )


class ShuffleBlock(nn.Module):
    """ShuffleNetV2: chunk, transform one half, concatenate, shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            nn.BatchNorm2d(half),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([left, self.branch(right)], 1), 2)


class GroupedShuffle(nn.Module):
    """ShuffleNetV1: grouped 1x1, shuffle, depthwise, grouped 1x1, residual."""

    def __init__(self, width: int, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.squeeze = conv_bn(width, width, 1, groups=groups)
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)
        )
        self.expand = nn.Sequential(nn.Conv2d(width, width, 1, groups=groups), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.expand(self.depthwise(channel_shuffle(self.squeeze(x), self.groups))))


class SplitSlice(nn.Module):
    """Uneven split, slices, hierarchical adds and concatenation (Res2Net, CSP, GhostNet)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one = conv_bn(3, 3)
        self.two = conv_bn(3, 3)
        self.join = conv_bn(width + 3, 6)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = torch.split(x, [2, 3, 3], dim=1)
        second = self.one(second)
        third = self.two(third + second)
        return self.join(torch.cat([third, x[:, :2] * first, second, x[:, 5:]], 1))


class PixelShuffle(nn.Module):
    """Sub-pixel upsampling and back: four neighbouring channels become one channel of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.expand = nn.Conv2d(4, 12, 3, padding=1)
        self.refine = conv_bn(3, 5)
        self.shrink = nn.PixelUnshuffle(2)
        self.last = nn.Conv2d(20, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(functional.pixel_shuffle(self.expand(self.stem(x)), 2))
        return self.head(torch.relu(self.last(self.shrink(self.refine(fine)))))


class Stages(nn.Module):
    """Two residual stages with every kind of shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))
        self.stage2 = nn.Sequential(BasicBlock(6, 8, 2), BasicBlock(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.stage2(self.stage1(x))


def _grouped() -> nn.Module:
    return Classifier(nn.Sequential(conv_bn(6, 8, 3, groups=2), conv_bn(8, 12, 3, groups=4), conv_bn(12, 6, 1)))


def _dense() -> nn.Module:
    return Classifier(nn.Sequential(DenseBlock(4, (3, 4, 2)), nn.BatchNorm2d(13), nn.ReLU()), 4, 13)


CASES = (
    Case("basic_identity", lambda: Classifier(nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))), free=3),
    Case("basic_downsample", lambda: Classifier(Stages(), 6, 8), free=6),
    Case("bottleneck", lambda: Classifier(nn.Sequential(Bottleneck(6, 4), Bottleneck(6, 3))), free=5),
    Case("bottleneck_grouped", lambda: Classifier(Bottleneck(6, 8, 4)), free=2),
    Case("inverted_residual", lambda: Classifier(nn.Sequential(InvertedResidual(4), InvertedResidual(4)), 4), free=3),
    Case("option_a", lambda: Classifier(nn.Sequential(OptionA(4, 8), OptionA(8, 12)), 4, 12), free=3),
    Case("dense_block", _dense, free=3),
    Case("inception", lambda: Classifier(Inception(6), 6, 12), free=4),
    Case("grouped_conv", _grouped, free=3),
    Case("unet", UNet, free=4),
    Case("input_concat", InputConcat, free=2),
    Case("shuffle_v2", lambda: Classifier(nn.Sequential(ShuffleBlock(8), ShuffleBlock(8)), 8), free=1),
    Case("shuffle_v1", lambda: Classifier(GroupedShuffle(8), 8), free=1),
    Case("split_slice", lambda: Classifier(SplitSlice(8), 8, 6), free=1),
    Case("pixel_shuffle", PixelShuffle, free=2),
)
