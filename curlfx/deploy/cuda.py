"""Latency of a torch module on an NVIDIA GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curlfx.deploy.statistics import Timings
from curlfx.errors import ConfigError, ModelError, first_line

WARMUP = 20  # calls: kernels are chosen and compiled, the clock rises
_IMAGE_AXES = 4


def time_on_cuda(
    module: nn.Module,
    inputs: Sequence[Any],
    *,
    dtype: torch.dtype = torch.float16,
    graph: bool = True,
    rounds: int = 40,
    runs: int = 5,
) -> Timings:
    """Milliseconds of every call of a copy of ``module`` on the current GPU, in inference; it needs a GPU.

    The time is that between two CUDA events around the call: the inputs lie on the GPU already, and the outputs stay
    there. Two modules that are to be compared take turns: call this for one and the other, with few rounds each time.

    Args:
        inputs: Tensors and other values; floating point is cast to ``dtype``.
        dtype: Of the weights as well. Images and kernels lie in memory as ``channels_last``.
        graph: Record the call once as a CUDA graph and replay it, so that no launch is waited for.
        rounds: Rows of the result.
        runs: Its columns, each after the other; a round begins with a call that is not timed.

    Shapes: the result is ``(rounds, runs)``.
    Raises: ConfigError without a GPU or for numbers out of range; ModelError when the call cannot be recorded.
    """
    for name, value in (("rounds", rounds), ("runs", runs)):
        if value < 1:
            raise ConfigError(f"{name} = {value}: want 1 or more")
    if not torch.cuda.is_available():
        raise ConfigError("time_on_cuda: torch finds no GPU; run it where torch.cuda.is_available() is true")
    ready = copy.deepcopy(module).eval().to("cuda", dtype)
    for tensor in chain(ready.parameters(), ready.buffers()):
        tensor.data = _placed(tensor.data, tensor.dtype)
    placed = tuple(_placed(value, dtype) for value in inputs)
    with torch.inference_mode(), _fastest_kernels():
        call = _caller(ready, placed, graph)
        return np.array([_turn(call, runs) for _ in range(rounds)])


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """Let cuDNN time its kernels for every shape and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _placed(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    layout = torch.channels_last if value.dim() == _IMAGE_AXES else torch.preserve_format
    return value.to("cuda", dtype if value.is_floating_point() else value.dtype, memory_format=layout)


def _caller(module: nn.Module, inputs: tuple[Any, ...], graph: bool) -> Callable[[], object]:
    """One call of the module, warmed up and, if asked for, recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is recorded must not have run on the default stream
        for _ in range(WARMUP):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    if not graph:
        return lambda: module(*inputs)
    recorded = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(recorded):
            module(*inputs)
    except RuntimeError as error:
        reason = first_line(error)
        raise ModelError(f"time_on_cuda: the call cannot be recorded: {reason}; want graph=False") from error
    return recorded.replay


def _turn(call: Callable[[], object], runs: int) -> list[float]:
    call()
    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times
