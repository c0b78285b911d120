"""A small residual network for the 8x8 grey digits of scikit-learn: the default network of ``curlfx run``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curlfx.models.blocks import BasicBlock, plain_block


class DigitsNet(nn.Module):
    """A stem, ``blocks`` residual blocks at full and at half resolution, average pooling and a linear head.

    Shapes: x ``(N, 1, 8, 8)``; y ``(N, num_classes)``.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = nn.Sequential(*(plain_block(width) for _ in range(blocks)))
        projection = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(2 * width))
        first = BasicBlock(width, 2 * width, 2, shortcut)
        self.stage2 = nn.Sequential(first, *(plain_block(2 * width) for _ in range(blocks - 1)))
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
