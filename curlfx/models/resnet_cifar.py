"""The residual networks of He et al. for 32x32 images: 6n+2 layers and shortcuts without parameters.

Source: "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2, shortcut option A. The key names
are those of the widely used weights of this family (`conv1`, `layer1.0.bn1`, …, `linear`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curlfx.models.blocks import BasicBlock, plain_block


class SubsampledIdentity(nn.Module):
    """Shortcut option A: every ``stride``-th pixel, zero channels added equally on both sides.

    Shapes: x ``(N, C, H, W)``; y ``(N, C + 2 * padding, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, stride: int, padding: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Return the subsampled, padded input."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """A stem, three stages of ``blocks`` basic blocks (16, 32, 64 channels), average pooling and a linear head.

    Shapes: x ``(N, 3, H, W)`` with H and W at least 4, 32 by design; y ``(N, num_classes)``.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores (logits)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return scores


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = nn.Identity() if stride == 1 else SubsampledIdentity(stride, (channels - in_channels) // 2)
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(plain_block(channels) for _ in range(blocks - 1)))


def _factory(depth: int) -> Callable[..., CifarResNet]:
    def build(num_classes: int = 10) -> CifarResNet:
        return CifarResNet((depth - 2) // 6, num_classes)

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"The CIFAR residual network of {depth} layers."
    return build


resnet20 = _factory(20)
resnet32 = _factory(32)
resnet44 = _factory(44)
resnet56 = _factory(56)
resnet110 = _factory(110)
