"""Fixture networks that take statistics over their channels, or over the weights that make them."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.networks.case import Case
from tests.networks.chains import chain, conv_bn
from tests.networks.joins import Classifier


class RootMeanSquare(nn.Module):
    """RMSNorm over channels first, as in the code of many language models.

    Args:
        width: Channels; each has a gain.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over channels first (ConvNeXt): mean, centred square, gain and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class DeviationNorm(nn.Module):
    """LayerNorm by ``std`` with Bessel's correction, over channels and pixels, in single precision at least."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True, dtype=torch.float64)
        return self.weight * (x - mean) / (x.std((1, 2, 3), keepdim=True) + 1e-5)


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt-V2, arXiv:2301.00808), channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.norm(p=2, dim=(1, 2), keepdim=True)
        share = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.beta, self.gamma, x * share)


class ResponseBlock(nn.Module):
    """The residual block of ConvNeXt-V2."""

    def __init__(self, width: int, hidden: int = 10) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.response = ResponseNorm(hidden)
        self.project = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + self.project(self.response(functional.gelu(y))).permute(0, 3, 1, 2)


class BlockAttention(nn.Module):
    """Channel and spatial attention by means and maxima (CBAM, arXiv:1807.06521).

    Args:
        width: Channels.
        named: Whether the maximum over channels comes as ``max(dim)[0]`` or as ``amax``.
    """

    def __init__(self, width: int, *, named: bool) -> None:
        super().__init__()
        self.named = named
        self.reduce, self.expand = nn.Conv2d(width, 3, 1, bias=False), nn.Conv2d(3, width, 1, bias=False)
        self.map = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)]
        x = x * torch.sigmoid(sum(self.expand(torch.relu(self.reduce(part))) for part in pooled))
        largest = x.amax(1, keepdim=True) if self.named else torch.max(x, dim=1, keepdim=True)[0]
        return x * torch.sigmoid(self.map(torch.cat([x.mean(1, keepdim=True), largest], 1)))


class GroupDeviation(nn.Module):
    """Swish over the deviation within groups of channels, after EvoNorm-S0 (arXiv:2004.02967)."""

    def __init__(self, width: int, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias, self.slope = (nn.Parameter(torch.ones(1, width, 1, 1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])
        spread = torch.var(blocks, dim=(2, 3, 4), keepdim=True, unbiased=False).add(1e-5).sqrt()
        return self.weight * torch.sigmoid(self.slope * x) * (blocks / spread).reshape(x.shape) + self.bias


class Moments(nn.Module):
    """Both moments at once, and the range, of all that an image has."""

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
        span = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
        return (x - mean) * torch.rsqrt(spread + 1e-3) / span


class Watched(nn.Module):
    """A classifier that also returns the mean activity of a layer, as a loss on it would take it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 6), conv_bn(6, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        activity = x.abs().mean()
        return self.fc(self.second(x).mean((2, 3))), activity


class StandardisedConv(nn.Conv2d):
    """Weight standardisation by batch normalisation of the weight (timm's ``StdConv2d`` and ``ScaledStdConv2d``).

    Args:
        scaled: Whether each filter has a gain, and the fan-in scales it (NF-ResNet, arXiv:2101.08692).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, scaled: bool = False, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1)) if scaled else None
        self.scale = self.weight[0].numel() ** -0.5

    def standardised(self) -> Tensor:
        """The weight that the convolution reads."""
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = None if self.gain is None else (self.gain * self.scale).view(-1)
        return functional.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6).reshape_as(
            self.weight
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)


class NormedConv(nn.Module):
    """Weight normalisation by hand: direction and length of every filter (arXiv:1602.07868)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.length = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        norms = self.direction.flatten(1).norm(dim=1)
        return functional.conv2d(x, self.direction * (self.length / norms)[:, None, None, None], padding=1)


def standardised(*, scaled: bool) -> nn.Module:
    """A residual network of standardised convolutions, a grouped one among them."""
    body = nn.Sequential(
        nn.SiLU(), StandardisedConv(6, 8, scaled=scaled, groups=2), nn.SiLU(), StandardisedConv(8, 6, 1, scaled=scaled)
    )
    return Classifier(nn.Sequential(StandardisedConv(6, 6, scaled=scaled), Added(body)), 6)


class Added(nn.Module):
    """A residual around a body."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def normed() -> nn.Module:
    """Every way in which torch computes a weight from others."""
    return chain(
        NormedConv(3, 6), nn.ReLU(),
        parametrizations.weight_norm(nn.Conv2d(6, 8, 3)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)), nn.ReLU(),
        parametrizations.orthogonal(nn.Conv2d(6, 6, 3)),
        width=6,
    )  # fmt: skip


CASES = (
    *(
        Case(name, lambda kind=kind: Classifier(nn.Sequential(kind(6), conv_bn(6, 8)), 6, 8), free=2, statistics=True)
        for name, kind in (
            ("rms_by_hand", RootMeanSquare),
            ("layer_norm_by_hand", ChannelsFirstNorm),
            ("deviation_norm", DeviationNorm),
            ("moments", lambda _: Moments()),
            ("group_deviation", GroupDeviation),
        )
    ),
    Case("response_norm", lambda: Classifier(ResponseBlock(6)), free=2, statistics=True),
    Case("cbam", lambda: Classifier(BlockAttention(6, named=True)), free=2, statistics=True),
    Case("cbam_max_of_dim", lambda: Classifier(BlockAttention(6, named=False)), free=2, statistics=True),
    Case("watched", Watched, free=2, statistics=True),
    Case("standardised", lambda: standardised(scaled=False), free=2),
    Case("standardised_scaled", lambda: standardised(scaled=True), free=2),
    Case("normed_weights", normed, free=3),
)
