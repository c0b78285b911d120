"""`WriteOutAdaptivePooling` computes what adaptive pooling computes, whatever the sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from curlfx.deploy import export_onnx, parity, prepare
from curlfx.graph import show, trace
from curlfx.passes.pipeline import run
from curlfx.passes.write_out_adaptive_pooling import WriteOutAdaptivePooling, step, windows

POOLS = {
    (kind, axes): getattr(functional, f"adaptive_{kind}_pool{axes}d") for kind in ("avg", "max") for axes in (1, 2, 3)
}


class Pool(nn.Module):
    def __init__(self, kind, size, **options) -> None:
        super().__init__()
        self.pool, self.size, self.options = POOLS[kind, len(size)], size, options

    def forward(self, x):
        return self.pool(x, self.size, **self.options)


def adaptive(traced) -> int:
    return sum("adaptive" in str(node.target) for node in traced.graph.nodes)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["avg", "max"]),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 9),
)
def test_the_function_stays(kind, sizes, is_batched, seed):
    before, after = zip(*sizes, strict=True)
    shape = (2, 3, *before) if is_batched else (2, *before)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    module = Pool(kind, after)
    traced = trace(module, (x,))
    text = show(traced)
    result, (record,) = run(traced, [WriteOutAdaptivePooling()])
    assert record.changed == (adaptive(result) < adaptive(traced))
    assert adaptive(result) == int(kind == "max" and set(after) == {1})
    torch.testing.assert_close(result.module(x), module(x), rtol=0, atol=1e-15 if kind == "avg" else 0)
    assert show(traced) == text
    more = torch.cat([x, x, -x])
    torch.testing.assert_close(result.module(more), module(more), rtol=0, atol=1e-15 if kind == "avg" else 0)


def test_windows_by_hand():
    assert windows(7, 3) == [(0, 3), (2, 5), (4, 7)]
    assert step(windows(7, 3)) == (3, 2)
    assert windows(7, 4) == [(0, 2), (1, 4), (3, 6), (5, 7)]
    assert step(windows(7, 4)) is None
    assert step(windows(1, 3)) is None
    assert step(windows(6, 1)) == (6, 6)


def test_even_windows_are_an_ordinary_pooling():
    result = WriteOutAdaptivePooling()(trace(Pool("max", (3, 2)), torch.randn(2, 3, 7, 4)))
    assert "aten.max_pool2d.default(%x, [3, 2], [2, 2])" in show(result)


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pooling_that_reads_pooling(kind):
    module = nn.Sequential(Pool(kind, (5, 4)), Pool(kind, (3, 2)))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    result = WriteOutAdaptivePooling()(trace(module, x))
    assert adaptive(result) == 0
    torch.testing.assert_close(result.module(x), module(x), rtol=0, atol=1e-15 if kind == "avg" else 0)


@pytest.mark.parametrize("size", [(1,), (1, 1), (1, 1, 1)])
def test_a_mean_of_everything_is_a_mean_wherever_channels_lie_in_memory(size, tmp_path):
    """Where they come last, the exporter would gather the elements of the pooling by computed positions."""
    module = nn.Sequential(LastChannels(), Pool("avg", size))
    x = (torch.randn(2, 3, *range(4, 4 + len(size))),)
    ready = prepare(trace(module, x))
    assert adaptive(ready) == 0
    made = export_onnx(ready.module, x, tmp_path / "net.onnx")
    assert set(made.operators) == {"Transpose", "Sigmoid", "ReduceMean"}
    assert parity(module, made.path, x, (1, 3)).worst < 1e-6


class LastChannels(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1).contiguous().sigmoid().movedim(-1, 1)


class Following(nn.Module):
    """The axes that are pooled are as long as the batch."""

    def forward(self, x):
        return functional.adaptive_avg_pool2d(x.transpose(0, 2), (3, 3)).transpose(0, 2)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Pool("max", (1, 1)), (2, 3, 5, 5)),
        (Pool("max", (3, 3), return_indices=True), (2, 3, 5, 5)),
        (Following(), (4, 3, 5, 5)),
    ],
)
def test_what_stays(module, shape):
    traced = trace(module, torch.randn(shape))
    result, (record,) = run(traced, [WriteOutAdaptivePooling()])
    assert not record.changed
    assert show(result) == show(traced)


SIZES = {1: ((2,), (5,)), 2: ((2, 2), (5, 3)), 3: ((2, 2, 2), (3, 5, 1))}


class Every(nn.Module):
    """Every kind of pooling to sizes that divide, that overlap evenly and that do neither."""

    def forward(self, x):
        """Shape ``(B, 2, 6, 7, 8)``."""
        sources = {1: x.mean((3, 4)), 2: x.mean(4), 3: x}
        return {
            f"{kind}{axes}_{number}": pool(sources[axes], size)
            for (kind, axes), pool in POOLS.items()
            for number, size in enumerate(SIZES[axes])
        }


@pytest.mark.slow
def test_onnxruntime_computes_the_same_at_any_batch_size(tmp_path):
    x = (torch.randn(3, 2, 6, 7, 8, generator=torch.Generator().manual_seed(0)),)
    made = export_onnx(prepare(trace(Every(), x)).module, x, tmp_path / "net.onnx")
    report = parity(Every(), made.path, x, (1, 3))
    assert report.worst < 1e-6, report.deviations
    assert "GatherND" not in made.operators
