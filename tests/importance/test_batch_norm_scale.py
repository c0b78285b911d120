"""Scales of batch normalisation: by hand, over a residual group, over blocks, and where there are none."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from curlfx.coupling import couple
from curlfx.errors import ModelError, WeightsError
from curlfx.graph import trace
from curlfx.importance import score


class Net(nn.Module):
    """A residual group with two normalisations, and one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.norm1 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.back, self.norm2 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.norm2(self.back(torch.relu(self.norm1(self.inner(x)))))
        return self.head(x.mean((2, 3)))


def scored(net: nn.Module) -> dict[str, np.ndarray]:
    traced = trace(net, (torch.randn(2, 3, 4, 4),))
    return dict(score(traced, couple(traced), "bn-scale").values)


def test_the_mean_over_the_normalisations_of_a_channel() -> None:
    net = randomise(Net(), 0)
    with torch.no_grad():
        net.norm.weight[2] *= -1
    found = scored(net)
    stem = (net.norm.weight.abs() + net.norm2.weight.abs()) / 2
    np.testing.assert_allclose(found["stem.weight"], stem.detach().double().numpy(), rtol=1e-6)
    assert np.array_equal(found["inner.weight"], net.norm1.weight.detach().double().numpy())


def test_a_block_gets_the_mean_of_its_channels() -> None:
    layers = [
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 1, groups=2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 2, 1),
    ]
    net = randomise(nn.Sequential(*layers), 0)
    found = scored(net)
    (blocks,) = (values for group, values in found.items() if group.endswith("#blocks"))
    first, second = (net[place].weight.detach().double().numpy().reshape(2, -1) for place in (1, 3))
    np.testing.assert_allclose(blocks, np.concatenate([first, second], 1).mean(1), rtol=1e-12)


def test_groups_without_a_scale_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    with pytest.raises(
        ModelError, match=r"no batch normalisation with a scale reads 4 of the 4 channels of group '0.weight'"
    ):
        scored(net)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1))
    with pytest.raises(ModelError, match=r"group '0.weight'"):
        scored(net)


def test_a_scale_that_is_not_finite() -> None:
    net = Net()
    with torch.no_grad():
        net.norm1.weight[1] = float("nan")
    with pytest.raises(WeightsError, match=r"parameter 'norm1.weight' has NaN"):
        scored(net)
