"""Files that the exporter or onnxruntime alone would get wrong."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from curlfx.deploy import export_onnx, parity


class Padded(nn.Module):
    """Padded with a value, then pooled: the value is the maximum wherever the border is below it."""

    def __init__(self, axes: int, value: float, padding: int) -> None:
        super().__init__()
        self.pads, self.value = (1, 0) * axes, value
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](3, 2, padding)

    def forward(self, x):
        return self.pool(functional.pad(x, self.pads, value=self.value))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("value", "padding"), [(0.0, 0), (0.0, 1), (-0.5, 0), (float("-inf"), 0)])
def test_what_is_padded_before_a_max_pooling_can_be_the_maximum(axes, value, padding, tmp_path):
    x = -torch.rand(3, 2, *(7, 6, 5)[:axes], generator=torch.Generator().manual_seed(axes)) - 0.1
    made = export_onnx(Padded(axes, value, padding), (x,), tmp_path / "net.onnx")
    assert parity(Padded(axes, value, padding), made.path, (x,)).worst == 0


class PaddedOnly(nn.Module):
    def forward(self, x):
        return functional.pad(x, (1, 1, 1, 1)).sigmoid()


def test_other_paddings_stay_as_they_are(tmp_path):
    made = export_onnx(PaddedOnly(), (torch.randn(2, 2, 5, 5),), tmp_path / "net.onnx")
    (pad,) = (node for node in onnx.load(made.path).graph.node if node.op_type == "Pad")
    assert len(pad.input) <= 3


class ManyClips(nn.Module):
    """One value clipped several times, with bounds that are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor([-1.0, -0.5, -0.25]))
        self.register_buffer("high", torch.tensor([1.5, 0.75, 0.3]))

    def forward(self, x):
        x = x * 2
        low, high = self.low.unbind(), self.high.unbind()
        return torch.stack([torch.clamp(x, low[i], high[i]) for i in range(3)])


class ManyBuffers(ManyClips):
    """The same with a buffer per bound, as clipped linear layers have them."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(3):
            self.register_buffer(f"low_{i}", self.low[i].clone())
            self.register_buffer(f"high_{i}", self.high[i].clone())

    def forward(self, x):
        x = x * 2
        return torch.stack([torch.clamp(x, getattr(self, f"low_{i}"), getattr(self, f"high_{i}")) for i in range(3)])


@pytest.mark.parametrize("module", [ManyClips(), ManyBuffers()])
def test_one_value_clipped_several_times(module, tmp_path):
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    made = export_onnx(module, (x,), tmp_path / "net.onnx", dynamic_batch=False)
    assert parity(module, made.path, (x,)).worst == 0
