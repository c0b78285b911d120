"""Rules of Fourier transforms and of complex numbers."""

import pytest
import torch

from tests.networks.net import Net, between, pointwise, tokens, weight
from tests.ops.rules import PASSES, check, frozen, passes

fft = torch.fft
MIXED = frozen("a Fourier transform runs over these channels")


def joined(function):
    return Net(lambda m, x: m.h(function(m.a(x), m.b(x))), a=pointwise(3, 8), b=pointwise(3, 8), h=pointwise(8, 2))


TIED = ["8: a.weight[0] b.weight[0] h.weight[1]"]

CASES = {
    "there_and_back": (between(lambda m, y: fft.irfft2(fft.rfft2(y, norm="ortho"), s=(4, 4), norm="ortho")), PASSES),
    "global_filter": (
        between(lambda m, y: fft.irfft2(fft.rfft2(y) * torch.view_as_complex(m.w), s=(4, 4)), w=weight(8, 4, 3, 2)),
        ["8: w[0] a.weight[0] h.weight[1]"],
    ),
    "of_all_named_axes": (between(lambda m, y: fft.fftn(y, dim=(2, 3)).real), PASSES),
    "by_sizes": (between(lambda m, y: fft.fftn(y, s=(4, 4)).imag), PASSES),
    "shifted": (between(lambda m, y: fft.ifftshift(fft.fftshift(y, dim=(2, 3)).exp(), dim=(2, 3))), PASSES),
    "magnitude": (between(lambda m, y: fft.rfft2(y).abs()), PASSES),
    "angle": (between(lambda m, y: fft.fft2(y).conj().angle()), PASSES),
    "parts": (between(lambda m, y: torch.view_as_real(fft.fft2(y)).sum(-1)), PASSES),
    "complex": (joined(lambda a, b: torch.complex(a, b).abs()), TIED),
    "polar": (joined(lambda a, b: torch.view_as_real(torch.polar(a.abs(), b)).sum(-1)), TIED),
    "over_channels": (between(lambda m, y: fft.fft(y, dim=1).real), MIXED),
    "over_everything": (between(lambda m, y: fft.fftn(y).real), MIXED),
    "of_tokens": (tokens(lambda m, y: fft.fft(y, dim=1).real), PASSES),
    "of_tokens_and_channels": (tokens(lambda m, y: fft.fft(fft.fft(y), dim=1).real), MIXED),
    "channels_as_parts": (
        tokens(lambda m, y: torch.view_as_complex(y.unflatten(-1, (4, 2))).abs(), outputs=4),
        passes(4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])
