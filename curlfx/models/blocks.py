"""The basic residual block that our networks are made of."""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which must change the shape as they do.

    Shapes: x ``(N, in_channels, H, W)``; y ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    Source: "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), figure 5, left.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(residual(x) + shortcut(x))``."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


def plain_block(channels: int) -> BasicBlock:
    """Return a block that keeps the shape, beside the identity."""
    return BasicBlock(channels, channels, 1, nn.Identity())
