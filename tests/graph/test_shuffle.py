"""Chains of reshapes that look like channel shuffles, and are none."""

import pytest
import torch
from torch import nn

from curlfx.graph import show, trace


class Chain(nn.Module):
    """Reshape, transpose, reshape back, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        return getattr(self, self.way)(x.relu())

    def shuffle(self, x):
        return x.view(x.shape[0], 2, 4, 5).transpose(1, 2).reshape(x.shape[0], 8, 5)

    def written_source(self, x):
        y = x.view(x.shape[0], 2, 4, 5).transpose(1, 2).contiguous()
        x.add_(1)
        return y.view(x.shape[0], 8, 5) * x

    def written_within(self, x):
        y = x.view(x.shape[0], 2, 4, 5).transpose(1, 2).contiguous()
        z = y.view(x.shape[0], 8, 5)
        y.add_(1)
        return z

    def batch(self, x):
        return x.view(x.shape[0] // 2, 2, 8, 5).transpose(0, 1).reshape(x.shape[0], 8, 5)

    def batch_in_columns(self, x):
        rows = x.transpose(0, 1).contiguous()
        y = rows.view(8, x.shape[0] // 2, 2, 5).transpose(1, 2).reshape(8, x.shape[0], 5)
        return y.transpose(0, 1)


@pytest.mark.parametrize("way", ["shuffle", "written_source", "written_within", "batch", "batch_in_columns"])
def test_traced_equals_module(way):
    model = Chain(way)
    traced = trace(model, torch.randn(8, 8, 5))
    assert traced.dynamic_batch
    assert ("index_select" in show(traced)) == (way == "shuffle")
    for batch in (4, 8, 12):
        x = torch.randn(batch, 8, 5)
        assert torch.equal(traced.module(x), model(x))
