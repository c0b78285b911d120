"""Networks by hand for what image classifiers do not have: pixels out, signals, volumes, sequences."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Entry

__all__ = ["dense_models"]


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """U-Net (Ronneberger et al., arXiv:1505.04597): skips by concatenation, transposed or bilinear upsampling.

    Shapes: input ``(N, 3, H, W)``, output ``(N, 2, H, W)``.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32), *, bilinear: bool = False) -> None:
        super().__init__()
        self.bilinear = bilinear
        self.down = nn.ModuleList(_double(i, o) for i, o in zip((3, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(
            nn.Conv2d(high, low, 1) if bilinear else nn.ConvTranspose2d(high, low, 2, 2) for high, low in pairs
        )
        self.merge = nn.ModuleList(_double(2 * low, low) for _, low in pairs)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if self.bilinear else x
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class _AttentionGate(nn.Module):
    """Additive attention gate of Attention U-Net (arXiv:1804.03999)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.skip, self.signal, self.mix = (
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(inner, 1, 1),
        )

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        return skip * self.mix(F.relu(self.skip(skip) + self.signal(signal))).sigmoid()


class AttentionUNet(nn.Module):
    """One level of Attention U-Net. Shapes: input ``(N, 3, H, W)``, output ``(N, 2, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.low = _double(3, 16), _double(16, 24)
        self.up, self.gate = nn.ConvTranspose2d(24, 16, 2, 2), _AttentionGate(16, 8)
        self.merge, self.head = _double(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.top(x)
        up = self.up(self.low(F.max_pool2d(skip, 2)))
        return self.head(self.merge(torch.cat([self.gate(skip, up), up], 1)))


class SuperResolution(nn.Module):
    """EDSR (Lim et al., arXiv:1707.02921): residual blocks without normalisation, then a pixel shuffle.

    Shapes: input ``(N, 3, H, W)``, output ``(N, 3, 2·H, 2·W)``.
    """

    def __init__(self, width: int = 24, blocks: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.after = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y = x
        for block in self.body:
            y = y + 0.1 * block(y)
        return self.tail(x + self.after(y))


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al., arXiv:1612.01105). Shapes: input ``(N, 3, H, W)``, output ``(N, 2, H, W)``."""

    def __init__(self, width: int = 16, scales: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.stem = _double(3, width)
        self.scales = scales
        self.levels = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in scales)
        self.head = nn.Conv2d(width + 4 * len(scales), 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = [
            F.interpolate(level(F.adaptive_avg_pool2d(x, scale)).relu(), size=x.shape[-2:], mode="bilinear")
            for scale, level in zip(self.scales, self.levels, strict=True)
        ]
        return self.head(torch.cat([x, *pooled], 1))


class Autoencoder(nn.Module):
    """Strided down, transposed up. Shapes: input and output ``(N, 3, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU(0.1),
            nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Signal(nn.Module):
    """A WaveNet-like stack (arXiv:1609.03499): dilated, gated, residual, with skips summed.

    Shapes: input ``(N, 2, T)``, output ``(N, 5)``.
    """

    def __init__(self, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, width, 3, padding=1)
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2**level, dilation=2**level) for level in range(layers)
        )
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(width, 12, 1) for _ in range(layers))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total = torch.zeros((), dtype=x.dtype)
        for gate, residual, skip in zip(self.gates, self.residual, self.skip, strict=True):
            filtered, opened = gate(x).chunk(2, 1)
            y = filtered.tanh() * opened.sigmoid()
            total = total + skip(y)
            x = x + residual(y)
        return self.head(total.relu().mean(-1))


class Volume(nn.Module):
    """A residual 3-D network. Shapes: input ``(N, 1, D, H, W)``, output ``(N, 4)``."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, width, 3, 2, 1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv3d(width, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(2 * width),
            nn.ReLU(),
            nn.Conv3d(2 * width, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.adaptive_avg_pool3d(F.relu(x + self.block(x)), 1).flatten(1))


class Recurrent(nn.Module):
    """Convolutions, a recurrent layer, a classifier per step. Shapes: input ``(N, 3, T)``, output ``(N, T, 6)``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 16, 3, padding=1))
        self.recurrent = getattr(nn, kind)(16, 12, num_layers=2, batch_first=True, bidirectional=kind != "RNN")
        width = 12 if kind == "RNN" else 24
        self.head = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, 6))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(self.stem(x).transpose(1, 2))
        return self.head(y)


class Encoder(nn.Module):
    """torch's own transformer encoder on patches of a signal. Shapes: input ``(N, 32, T)``, output ``(N, 5)``."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 24)
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.transpose(1, 2))).mean(1))


_MODELS: dict[str, tuple[str, tuple[int, ...], Callable[[], nn.Module]]] = {
    "unet": ("U-Net, transposed convolutions", (3, 32, 32), UNet),
    "unet_bilinear": ("U-Net, bilinear", (3, 32, 32), lambda: UNet(bilinear=True)),
    "attention_unet": ("Attention U-Net", (3, 32, 32), AttentionUNet),
    "super_resolution": ("EDSR, pixel shuffle", (3, 16, 16), SuperResolution),
    "pyramid_pooling": ("PSPNet head", (3, 16, 16), PyramidPooling),
    "autoencoder": ("autoencoder, instance and group normalisation", (3, 32, 32), Autoencoder),
    "signal": ("1-D, dilated and gated", (2, 40), Signal),
    "volume": ("3-D, factored", (1, 8, 16, 16), Volume),
    "lstm": ("LSTM", (3, 12), lambda: Recurrent("LSTM")),
    "gru": ("GRU", (3, 12), lambda: Recurrent("GRU")),
    "rnn": ("Elman network", (3, 12), lambda: Recurrent("RNN")),
    "encoder": ("torch's transformer encoder", (32, 10), lambda: Encoder(norm_first=False)),
    "encoder_pre_norm": ("torch's transformer encoder, pre-normalised", (32, 10), lambda: Encoder(norm_first=True)),
}


def dense_models() -> dict[str, Entry]:
    """The networks of this file."""
    return {name: Entry(name, kind, shape, build, zoo="dense") for name, (kind, shape, build) in _MODELS.items()}
