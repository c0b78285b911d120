"""What slimming does to arguments that a kept width of 1, or of several groups, would change the meaning of."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.trial import randomise
from tests.oracles import Laboratory
from tests.properties import invariants


class Squeezes(nn.Module):
    """A squeeze after which an axis of channels must still be there, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Linear(5, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()[:, None, :, None]
        if self.way == "all":
            return self.last(x.squeeze())
        if self.way == "in place":
            return self.last(x.exp().squeeze_())
        if self.way == "one":
            return self.last(x.squeeze(2).squeeze(-1).squeeze(1))
        return self.last(x.squeeze((1, 2, 3)))


@pytest.mark.parametrize("way", ["all", "in place", "one", "several"])
def test_an_axis_of_one_channel_is_not_squeezed(way):
    x = torch.linspace(-3, 2, 6 * 5, dtype=torch.float64).sin().reshape(6, 5)
    laboratory = Laboratory.of(randomise(Squeezes(way).double()).eval(), (x[:3],))
    for kept in ((2,), (1, 4)):
        for batch in (2, 3, 6):
            invariants.slim_equals_gated(laboratory, {"first.weight": kept}, (x[:batch],))


class FilterPerImage(nn.Module):
    """A convolution with as many groups as images, behind layers that can be slimmed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.make = nn.Linear(6, 4 * 4)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        weight = self.make(self.hidden(x.mean((2, 3))).relu()).reshape(batch * 4, 4, 1, 1)
        return functional.conv2d(x.reshape(1, batch * 4, 5, 5), weight, groups=batch).view(batch, 4, 5, 5)


def test_as_many_groups_as_images():
    x = torch.linspace(-3, 2, 5 * 100, dtype=torch.float64).sin().reshape(5, 4, 5, 5)
    laboratory = Laboratory.of(randomise(FilterPerImage().double()).eval(), (x[:3],))
    for batch in (1, 2, 3, 5):
        invariants.slim_equals_gated(laboratory, {"hidden.weight": (0, 3, 4)}, (x[:batch],))
