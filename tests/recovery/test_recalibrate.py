"""Recalibration against the definition of the statistics, on modules and on exported graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curlfx.errors import DataError
from curlfx.graph import trace
from curlfx.recovery import recalibrate


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    for norm in (module[1], module[5]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return module.eval()


def data() -> list:
    generator = torch.Generator().manual_seed(1)
    return [(2 + 3 * torch.randn(6, 3, 9, 9, generator=generator), torch.zeros(6).long()) for _ in range(3)]


def expected() -> dict[str, torch.Tensor]:
    """What `BatchNorm2d(momentum=None)` measures, with dropout off."""
    module = network()
    for norm in (module[1], module[5]):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for images, _ in data():
            module(images)
    return {name: tensor for name, tensor in module.state_dict().items() if "running" in name}


def exported() -> nn.Module:
    return trace(network(), (data()[0][0],)).module


@pytest.mark.parametrize("make", [network, exported])
def test_measures_the_cumulative_average(make):
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    text = module.code if hasattr(module, "code") else ""
    assert recalibrate(module, data()) == 2
    after = module.state_dict()
    for name, tensor in expected().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[name], after[name]) for name in before if "weight" in name or "bias" in name)
    images = data()[0][0]
    torch.testing.assert_close(module(images), module(images), rtol=0, atol=0)
    assert all(torch.equal(after[name], tensor) for name, tensor in module.state_dict().items())
    assert (module.code if hasattr(module, "code") else "") == text


@pytest.mark.parametrize("make", [network, exported])
def test_an_unfinished_pass_changes_nothing(make):
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if "running" in name}

    def broken():
        yield data()[0]
        raise KeyboardInterrupt

    for batches, error in ((broken(), KeyboardInterrupt), ([], DataError)):
        with pytest.raises(error):
            recalibrate(module, batches)
        after = module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_network_without_batch_norm():
    assert recalibrate(nn.Conv2d(3, 4, 3), data()) == 0
