"""BatchNorm statistics measured afresh, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curlfx.errors import DataError
from curlfx.recovery.batches import Batch
from curlfx.recovery.hardware import choose_device, home_of

_MEAN, _VARIANCE, _TRAINING, _MOMENTUM = 3, 4, 5, 6  # arguments of aten.batch_norm


@dataclass(frozen=True)
class _Statistics:
    """Running mean and variance of one BatchNorm, each ``(C,)``."""

    mean: Tensor
    variance: Tensor


def recalibrate(module: nn.Module, batches: Iterable[Batch], *, device: str = "auto") -> int:
    """Replace every BatchNorm's running statistics by their cumulative average over ``batches``.

    The average over batches of batch mean and (unbiased) batch variance, as `torch.nn.BatchNorm2d(momentum=None)` keeps
    it; all else stays in eval mode (no dropout), no weight changes. Works on modules and on exported graphs. What an
    unfinished pass would leave half-done is put back.

    Returns: the number of BatchNorms measured.
    Raises: DataError when ``batches`` is empty.
    Source: AdaBN-style re-calibration as in EagleEye, arXiv:2007.02491, section 3.2.
    """
    place, home, was_training = choose_device(device), home_of(module), module.training
    module.to(place).eval()
    try:
        with _measuring(module) as found:
            kept = [(one.mean.clone(), one.variance.clone()) for one in found]
            try:
                sums = _averages(module, found, batches, place) if found else kept
            except BaseException:
                _write(found, kept)
                raise
            _write(found, sums)
    finally:
        module.to(home).train(was_training)
    return len(found)


def _averages(
    module: nn.Module, found: list[_Statistics], batches: Iterable[Batch], place: torch.device
) -> list[tuple[Tensor, Tensor]]:
    sums = [(torch.zeros_like(one.mean).double(), torch.zeros_like(one.variance).double()) for one in found]
    count = 0
    with torch.no_grad():
        for images, _ in batches:
            module(images.to(place))
            count += 1
            for (mean, variance), one in zip(sums, found, strict=True):
                mean += one.mean
                variance += one.variance
    if count == 0:
        raise DataError("no image to measure BatchNorm statistics on; want at least one batch")
    return [(mean / count, variance / count) for mean, variance in sums]


def _write(found: list[_Statistics], values: list[tuple[Tensor, Tensor]]) -> None:
    for one, (mean, variance) in zip(found, values, strict=True):
        one.mean.copy_(mean)
        one.variance.copy_(variance)


@contextmanager
def _measuring(module: nn.Module) -> Iterator[list[_Statistics]]:
    """BatchNorm normalises by the batch and leaves exactly its statistics in the running buffers (momentum 1)."""
    with ExitStack() as undo:
        found = _measure_modules(module, undo.callback)
        if isinstance(module, fx.GraphModule):
            found += _measure_graph(module, undo.callback)
        yield found


def _measure_modules(module: nn.Module, undo: Callable[..., object]) -> list[_Statistics]:
    found = []
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            undo(setattr, norm, "momentum", norm.momentum)
            undo(norm.train, norm.training)
            norm.momentum = 1.0
            norm.train()
            found.append(_Statistics(norm.running_mean, norm.running_var))
    return found


def _measure_graph(module: fx.GraphModule, undo: Callable[..., object]) -> list[_Statistics]:
    found = {}
    undo(module.recompile)  # runs last
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        mean, variance = node.args[_MEAN], node.args[_VARIANCE]
        if not (isinstance(mean, fx.Node) and isinstance(variance, fx.Node)):
            continue
        undo(setattr, node, "args", node.args)
        node.args = (*node.args[:_TRAINING], True, 1.0, *node.args[_MOMENTUM + 1 :])
        found[mean.target] = _Statistics(module.get_buffer(str(mean.target)), module.get_buffer(str(variance.target)))
    module.recompile()
    return list(found.values())
