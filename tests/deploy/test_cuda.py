"""What can be said of timing on a GPU where there is none, and its shape where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from curlfx.deploy.cuda import time_on_cuda
from curlfx.errors import ConfigError

IMAGES = (torch.zeros(2, 3, 8, 8),)


def test_refuses_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        time_on_cuda(nn.Conv2d(3, 4, 3), IMAGES)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"runs": 0}])
def test_refuses_numbers_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = 0: want 1 or more"):
        time_on_cuda(nn.Conv2d(3, 4, 3), IMAGES, **wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("graph", [True, False])
def test_times_on_a_gpu_and_leaves_the_module_alone(graph):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)).train()
    found = time_on_cuda(module, IMAGES, graph=graph, rounds=3, runs=2)
    assert found.shape == (3, 2)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert module.training
    assert all(one.device.type == "cpu" and one.dtype != torch.float16 for one in module.state_dict().values())
