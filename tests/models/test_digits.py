"""The default network: small enough to train in seconds, with a shortcut of each kind."""

import torch

from curlfx.models import DigitsNet, digits
from curlfx.sources import class_scores


def test_shapes() -> None:
    assert class_scores(digits(), (1, 8, 8)) == 10
    assert class_scores(digits(num_classes=3), (1, 8, 8)) == 3


def test_widths_are_multiples_of_sixteen() -> None:
    assert all(m.out_channels % 16 == 0 for m in digits().modules() if isinstance(m, torch.nn.Conv2d))


def test_has_identity_and_projection_shortcuts() -> None:
    shortcuts = [type(block.shortcut).__name__ for block in (*DigitsNet().stage1, *DigitsNet().stage2)]
    assert shortcuts == ["Identity", "Identity", "Sequential", "Identity"]


def test_trains() -> None:
    net = DigitsNet(width=16, blocks=1)
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
