"""Fixture networks that weigh, normalise or mix their channels: gates, attention, cross-channel normalisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks.case import Case
from tests.networks.chains import chain, conv_bn
from tests.networks.joins import Classifier


class SqueezeExcitation(nn.Module):
    """Channel gate through a bottleneck of two 1x1 convolutions; sigmoid(0) is not 0."""

    def __init__(self, width: int, squeeze: int = 3) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeeze, 1)
        self.expand = nn.Conv2d(squeeze, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1)))))


class MeanGate(nn.Module):
    """Channel attention without parameters: mean over pixels, sigmoid, broadcast."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class PixelGate(nn.Module):
    """Spatial attention: a one-channel map is broadcast over all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(width, 1, 3, padding=1)
        self.shift = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(x)) + self.shift(x)


class SelectiveKernel(nn.Module):
    """Two branches weighed against each other by a softmax over branches (SKNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_bn(width, width, 3), conv_bn(width, width, 1)])
        self.reduce = nn.Conv2d(width, 3, 1)
        self.expand = nn.Conv2d(3, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([branch(x) for branch in self.branches], dim=1)
        weights = self.expand(torch.relu(self.reduce(paths.sum(1).mean((2, 3), keepdim=True))))
        weights = weights.view(x.shape[0], 2, -1, 1, 1).softmax(dim=1)
        return (paths * weights).sum(dim=1)


class GatedLinear(nn.Module):
    """GLU: one half of the channels gates the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 10, 1)
        self.project = nn.Conv2d(5, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(functional.glu(self.expand(x), dim=1))


class Attention(nn.Module):
    """Multi-head self-attention over pixels with a residual.

    Args:
        fused: One projection for query, key and value, or three.
        flash: `scaled_dot_product_attention`, or matmul, softmax, matmul.
    """

    def __init__(self, width: int, heads: int = 2, *, fused: bool = True, flash: bool = True) -> None:
        super().__init__()
        self.heads, self.fused, self.flash = heads, fused, flash
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        size = (batch, tokens.shape[1], self.heads, channels // self.heads)
        if self.fused:
            query, key, value = self.qkv(tokens).reshape(*size[:2], 3, *size[2:]).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            query, key, value = (part(tokens).view(size).transpose(1, 2) for part in (self.query, self.key, self.value))
        if self.flash:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query * size[3] ** -0.5 @ key.transpose(-2, -1)).softmax(-1) @ value
        mixed = mixed.transpose(1, 2).reshape(batch, rows * columns, channels)
        return x + self.project(mixed).transpose(1, 2).reshape(batch, channels, rows, columns)


class Transformer(nn.Module):
    """A vision transformer in small: patches, class token, position table, torch's own encoder layer."""

    def __init__(self, width: int = 8, hidden: int = 10, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width) * 0.1)
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.norm(x + self.mlp(self.norm2(x)))[:, 0])


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, channels-last LayerNorm, two linear layers, layer scale, residual."""

    def __init__(self, width: int, hidden: int = 10) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.project = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(functional.gelu(self.expand(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


class GroupNormNet(nn.Module):
    """conv-GroupNorm-relu twice; widths are arguments so that a test can build the narrow network itself."""

    def __init__(self, widths: tuple[int, int] = (6, 8), groups: tuple[int, int] = (1, 2)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.norm1 = nn.GroupNorm(groups[0], widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.norm2 = nn.GroupNorm(groups[1], widths[1])
        self.fc = nn.Linear(widths[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.fc(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class LayerNormNet(nn.Module):
    """linear-LayerNorm-gelu on pixels; widths are arguments so that a test can build the narrow network itself."""

    def __init__(self, widths: tuple[int, int] = (6, 8)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 2, 2)
        self.norm1 = nn.LayerNorm(widths[0])
        self.fc1 = nn.Linear(widths[0], widths[1])
        self.norm2 = nn.LayerNorm(widths[1], bias=False)
        self.fc2 = nn.Linear(widths[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(self.conv(x).permute(0, 2, 3, 1)))
        return self.fc2(torch.tanh(self.norm2(self.fc1(x))).mean((1, 2)))


def _instance_norm() -> nn.Module:
    return chain(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU(), nn.Conv2d(8, 8, 1),
    )  # fmt: skip


def _attention(*, fused: bool, flash: bool) -> nn.Module:
    return Classifier(Attention(8, 2, fused=fused, flash=flash), 8)


CASES = (
    Case("squeeze_excitation", lambda: Classifier(nn.Sequential(conv_bn(6, 8), SqueezeExcitation(8)), 6, 8), free=3),
    Case("mean_gate", lambda: Classifier(nn.Sequential(MeanGate(), conv_bn(6, 8), MeanGate()), 6, 8), free=2),
    Case("pixel_gate", lambda: Classifier(nn.Sequential(PixelGate(6), conv_bn(6, 5)), 6, 5), free=2),
    Case("selective_kernel", lambda: Classifier(SelectiveKernel(6)), free=3),
    Case("gated_linear", lambda: Classifier(GatedLinear(6)), free=2),
    Case("attention_fused", lambda: _attention(fused=True, flash=True), free=1),
    Case("attention_fused_matmul", lambda: _attention(fused=True, flash=False), free=1),
    Case("attention_separate", lambda: _attention(fused=False, flash=True), free=1),
    Case("attention_separate_matmul", lambda: _attention(fused=False, flash=False), free=1),
    Case("transformer", Transformer, free=2, statistics=True),
    Case("convnext_block", lambda: Classifier(ConvNeXtBlock(6)), free=2, statistics=True),
    Case("group_norm", GroupNormNet, free=2, statistics=True),
    Case("layer_norm", LayerNormNet, free=2, statistics=True),
    Case("instance_norm", _instance_norm, free=2),
)
