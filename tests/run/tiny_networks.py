"""Networks for tests of whole jobs, as a user would name them: ``tiny_networks.py:residual``."""

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class Residual(nn.Module):
    """A stem, one residual block and a head, for images ``(N, 1, 8, 8)``."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = functional.relu(x + self.outer(functional.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


class Undecided(Residual):
    """Its path depends on the values of the image, which `torch.export` refuses."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return super().forward(x)


class Normed(Residual):
    """A GroupNorm averages over the channels of its first layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.bn = nn.GroupNorm(1, 16)


def normed(num_classes: int = 10) -> nn.Module:
    return Normed(num_classes)


def residual(num_classes: int = 10) -> nn.Module:
    return Residual(num_classes)


def weight_normed(num_classes: int = 10) -> nn.Module:
    network = Residual(num_classes)
    parametrizations.weight_norm(network.inner)
    return network


def undecided(num_classes: int = 10) -> nn.Module:
    return Undecided(num_classes)


def seven_classes() -> nn.Module:
    return Residual(7)


def colour() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(10))


def broken() -> nn.Module:
    raise RuntimeError("no network today")


def leaving() -> nn.Module:
    raise SystemExit(3)


def not_a_number(num_classes: int = 10) -> nn.Module:
    network = Residual(num_classes)
    nn.init.constant_(network.head.bias, float("nan"))
    return network


def all_frozen(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
