"""A small residual network for the 8x8 grey digits of scikit-learn: the default network of ``curlfx run``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Shapes: x ``(N, in_channels, H, W)``; y ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(shortcut(x) + residual(x))``."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class DigitsNet(nn.Module):
    """A stem, ``blocks`` residual blocks at full and at half resolution, average pooling and a linear head.

    Shapes: x ``(N, 1, 8, 8)``; y ``(N, num_classes)``.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = nn.Sequential(*(ResidualBlock(width, width) for _ in range(blocks)))
        self.stage2 = nn.Sequential(
            ResidualBlock(width, 2 * width, stride=2),
            *(ResidualBlock(2 * width, 2 * width) for _ in range(blocks - 1)),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (logits)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage2(self.stage1(x))
        scores: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return scores


def digits(num_classes: int = 10) -> DigitsNet:
    """Return the default network of ``curlfx run``."""
    return DigitsNet(num_classes)
