"""Small networks, one pattern each, that people meet when they prune: the inputs are images of 3x16x16.

Written as a user would write them, without a thought to either tool. The last layer is called ``head``.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

__all__ = ["PATTERNS"]


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    """Convolution of the same size, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(nn.Module):
    """Stem, body, global pooling, linear."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.body = body
        self.head = nn.Linear(outputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class OptionA(nn.Module):
    """Parameter-free shortcut of the CIFAR ResNets: every second pixel, zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(16, 32, stride=2), nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))


class Shuffle(nn.Module):
    """ShuffleNet: channels of two groups interleaved by view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(16, 32, 1, groups=2), conv_bn(32, 32, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        return self.second(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class UnevenChunk(nn.Module):
    """`chunk` into three parts of 6, 6 and 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(6, 8), conv_bn(6, 8), conv_bn(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.chunk(3, 1)
        return torch.cat([self.a(a), self.b(b), self.c(c)], 1)


class SplitCat(nn.Module):
    """C2f block: two halves, the second goes on, all parts are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.step, self.close = conv_bn(16, 16, 1), conv_bn(8, 8), conv_bn(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.open(x).split((8, 8), 1))
        parts.append(parts[-1] + self.step(parts[-1]))
        return self.close(torch.cat(parts, 1))


class HierarchicalSplit(nn.Module):
    """Res2Net: uneven parts, each added to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.third = conv_bn(4, 4), conv_bn(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, rest = torch.split(x, [4, 4, 4, 4], 1)
        second = self.second(second + first)
        return torch.cat([first, second, self.third(third + second), rest], 1)


class SqueezeExcite(nn.Module):
    """Gate per channel from pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = conv_bn(16, 32), nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.up(torch.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))


class SelectiveKernel(nn.Module):
    """SKNet: two branches weighted by a softmax over branches, per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = conv_bn(16, 16), conv_bn(16, 16, 5)
        self.down, self.up = nn.Linear(16, 8), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.small(x), self.large(x)], 1)
        weights = self.up(torch.relu(self.down(branches.sum(1).mean((2, 3))))).view(x.shape[0], 2, -1, 1, 1)
        return (branches * weights.softmax(1)).sum(1)


class Grouped(nn.Module):
    """ResNeXt block: a convolution of four groups inside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(16, 32, 1), conv_bn(32, 32, groups=4), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class PixelShuffle(nn.Module):
    """Sub-pixel upsampling, as in super-resolution networks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.expand, self.head = conv_bn(3, 16), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(functional.pixel_shuffle(self.expand(self.body(x)), 2)))


class TiedWeights(nn.Module):
    """Encoder and decoder share one weight, the decoder transposed (tied auto-encoder)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encode, self.head = nn.Linear(3 * 256, 24), nn.Linear(24, 12), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        code = torch.relu(self.encode(x))
        return self.head(torch.relu(functional.linear(code, self.encode.weight.t())))


class CalledTwice(nn.Module):
    """One tower on two scales (RetinaNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = conv_bn(3, 16), conv_bn(16, 16, stride=2)
        self.tower, self.head = conv_bn(16, 16), nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        return self.head(self.tower(fine)), self.head(self.tower(coarse))


class Flatten(nn.Module):
    """4x4 pixels flattened into a linear layer (VGG, LeNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 12), nn.MaxPool2d(4))
        self.hidden, self.head = nn.Linear(12 * 16, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(torch.flatten(self.features(x), 1))))


class GroupNorm(nn.Module):
    """Four groups of a GroupNorm between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32), nn.SiLU(), conv_bn(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class FusedAttention(nn.Module):
    """Attention with one projection for q, k and v, as timm writes it; the scale is a number of the layer."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, self.num_heads * self.head_dim))


class SeparateAttention(nn.Module):
    """Attention with three projections and `scaled_dot_product_attention`, as Hugging Face writes it."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (p(x).view(n, t, -1, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Patches, one block of attention and one of linear layers, mean over tokens."""

    def __init__(self, attention: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x).mean(1))


class PositionTable(nn.Module):
    """A table of positions and a class token, parameters of the network itself."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.norm, self.hidden, self.head = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(functional.gelu(self.hidden(self.norm(x)))[:, 0])


class BareParameter(nn.Module):
    """A convolution written with `functional`, and a scale per channel, both from parameters without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 16, 3, 3) / 12)
        self.scale = nn.Parameter(torch.rand(24) + 0.5)
        self.close = conv_bn(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(torch.relu(functional.conv2d(x, self.weight, padding=1) * self.scale.view(1, -1, 1, 1)))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: every filter to mean 0 and variance 1 (BiT ResNets)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-8)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WeightStandardisation(nn.Module):
    """Two standardised convolutions, GroupNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = StandardisedConv(16, 32, 3), nn.GroupNorm(4, 32)
        self.second = StandardisedConv(32, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))))


class UNet(nn.Module):
    """Encoder and decoder with a concatenated skip, transposed convolution up."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.down = conv_bn(3, 12), conv_bn(12, 24, stride=2)
        self.up, self.decode, self.head = nn.ConvTranspose2d(24, 12, 2, 2), conv_bn(24, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encode(x)
        return self.head(self.decode(torch.cat([skip, torch.relu(self.up(self.down(skip)))], 1)))


class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes two channels of every one."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.close = conv_bn(16, 32, groups=16), conv_bn(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.spread(x))


class Transposed(nn.Module):
    """A decoder of transposed convolutions (DCGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 16, stride=2), nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.head = nn.ConvTranspose2d(12, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Permuted(nn.Module):
    """Channels reordered by an index buffer."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(15, -1, -1))
        self.close = conv_bn(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(x[:, self.order])


class InputConcat(nn.Module):
    """The image concatenated to its own features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 12), conv_bn(15, 16), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.cat([x, self.first(x)], 1)))


class SpatialGate(nn.Module):
    """Every channel multiplied by one map (spatial attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.map = conv_bn(16, 24), nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.map(x))


class GatedUnit(nn.Module):
    """GLU: one half of the channels gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.close = nn.Conv2d(16, 32, 3), conv_bn(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(functional.glu(self.conv(x), 1))


class FrozenNorm(nn.Module):
    """BatchNorm whose numbers are buffers (backbones of detectors)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.close = nn.Conv2d(16, 24, 3), FrozenBatchNorm2d(24), conv_bn(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(torch.relu(self.norm(self.conv(x))))


class DenseBlock(nn.Module):
    """Every layer reads all before it (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn(16 + 6 * number, 6) for number in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


PATTERNS: Mapping[str, Callable[[], nn.Module]] = {
    "option-A shortcut": lambda: Classifier(OptionA(), 16, 32),
    "dense block": lambda: Classifier(DenseBlock(), 16, 34),
    "channel shuffle": lambda: Classifier(Shuffle(), 16, 32),
    "uneven chunk": lambda: Classifier(UnevenChunk(), 16, 24),
    "split and cat (C2f)": lambda: Classifier(SplitCat(), 16, 16),
    "hierarchical split": lambda: Classifier(HierarchicalSplit(), 16, 16),
    "squeeze-excite": lambda: Classifier(SqueezeExcite(), 16, 32),
    "selective kernel": lambda: Classifier(SelectiveKernel(), 16, 16),
    "grouped convolution": lambda: Classifier(Grouped(), 16, 16),
    "depth multiplier 2": lambda: Classifier(DepthMultiplier(), 16, 16),
    "pixel shuffle": PixelShuffle,
    "transposed convolution": Transposed,
    "U-Net skip": UNet,
    "image concatenated": InputConcat,
    "flatten with pixels": Flatten,
    "GroupNorm": lambda: Classifier(GroupNorm(), 16, 16),
    "frozen BatchNorm": lambda: Classifier(FrozenNorm(), 16, 16),
    "weight standardisation": lambda: Classifier(WeightStandardisation(), 16, 16),
    "spatial gate": lambda: Classifier(SpatialGate(), 16, 24),
    "gated linear unit": lambda: Classifier(GatedUnit(), 16, 16),
    "index of channels": lambda: Classifier(Permuted(), 16, 16),
    "layer called twice": CalledTwice,
    "tied weights": TiedWeights,
    "bare parameters": lambda: Classifier(BareParameter(), 16, 16),
    "fused qkv": lambda: Transformer(FusedAttention()),
    "separate qkv": lambda: Transformer(SeparateAttention()),
    "position table": PositionTable,
}
