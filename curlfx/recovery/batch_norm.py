"""Batch normalisation by the statistics of the whole batch, where several processes have a part of it each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from curlfx.errors import DataError, ModelError
from curlfx.recovery.loss import precise
from curlfx.recovery.processes import Processes

_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ATEN = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_ARGUMENTS: Mapping[Any, tuple[str, ...]] = {
    functional.batch_norm: _FUNCTIONAL,
    torch.batch_norm: _ATEN,
    torch.ops.aten.batch_norm: _ATEN,
    torch.ops.aten.batch_norm.default: _ATEN,
}
_DEFAULTS = {"running_mean": None, "running_var": None, "weight": None, "bias": None, "training": False}
_REFUSED = ("native_batch_norm", "_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm")
_INSTANCE_NORM = ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats")


class WholeBatchNorm(TorchFunctionMode):
    """While it is entered, every batch normalisation in training mode averages over the parts of all processes.

    That holds for modules and graphs alike, and for what is computed again within a backward pass; the network stays
    as it is. `torch.nn.SyncBatchNorm`, which needs GPUs, does the same by itself.

    Raises: ModelError, in the first forward pass, for normalisations of which this is not known; DataError where the
        whole batch has one value per channel.
    Source: gradient as in torch.nn.SyncBatchNorm; parallel variance of Chan et al. 1979.
    """

    def __init__(self, group: Processes) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute a batch normalisation over all processes, everything else as it is."""
        kwargs = kwargs or {}
        names = _ARGUMENTS.get(func)
        if names is not None:
            given = _DEFAULTS | {"momentum": 0.1, "eps": 1e-5} | dict(zip(names, args, strict=False)) | kwargs
            if given["training"]:
                return self._normalised(**{name: given[name] for name in _FUNCTIONAL if name != "training"})
        else:
            _check(func, args, kwargs)
        return func(*args, **kwargs)

    def _normalised(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, variance, count = batch_statistics(input, self._group)
        alone = input.numel() == input.shape[1]  # one value here: whether there are others is worth waiting for
        if alone and float(count) == 1:
            raise DataError(f"batch normalisation of {tuple(input.shape)}: want 2 or more values per channel")
        with torch.no_grad():
            for running, found in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
                if running is not None:
                    running.copy_((1.0 - momentum) * precise(running) + momentum * found)
        normalised: Tensor = _Normalised.apply(input, weight, bias, mean, variance, count, eps, self._group)
        return normalised


@torch.no_grad()
def batch_statistics(values: Tensor, group: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance ``(C,)`` of all processes' values ``(b, C, …)``; values per channel, a scalar."""
    values = precise(values.detach())
    variance, mean = torch.var_mean(values, _but_channels(values), correction=0)
    channels = values.shape[1]
    table = mean.new_zeros((group.count, 2 * channels + 1))
    table[group.rank] = torch.cat([mean, variance, mean.new_full((1,), values.numel() // channels)])
    group.add_up([table])
    means, variances, counts = table.split([channels, channels, 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, counts.sum()


def check_visible(module: nn.Module) -> None:
    """Refuse parts whose batch normalisations `WholeBatchNorm` would not see. Raises: ModelError."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) or type(part).__name__ == "OptimizedModule":
            raise ModelError(
                f"'{name or 'the network'}' is scripted or compiled, which several processes cannot share; give the "
                "module that it was made from, or use a single process"
            )


def backward(loss: Tensor, group: Processes) -> None:
    """``loss.backward()``; of several processes one in which `WholeBatchNorm` stays in force, unlike in torch's own.

    Raises: ModelError where this torch has no such entrance.
    """
    if group.count == 1:
        loss.backward()
        return
    try:
        from torch.autograd.graph import _engine_run_backward
    except ImportError as error:  # it is not public
        raise ModelError(f"torch {torch.__version__} trains in a single process only: {error}") from error
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


class _Normalised(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, whose statistics depend on everyone's x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        group: Processes,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.group = group
        weight, bias = (None if one is None else precise(one) for one in (weight, bias))
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _but_channels(x), (1, -1, *(1 for _ in x.shape[2:]))
        dy = precise(gradient)
        normed = (precise(x) - mean.view(shape)) * scale.view(shape)
        to_bias, to_weight = dy.sum(dims), (dy * normed).sum(dims)
        means = torch.stack([to_bias, to_weight])
        ctx.group.add_up([means])
        means /= count
        factor = scale if weight is None else scale * weight
        dx = (dy - means[0].view(shape) - normed * means[1].view(shape)) * factor.view(shape)
        wanted = ctx.needs_input_grad
        return (
            dx.to(x.dtype) if wanted[0] else None,
            to_weight.to(weight.dtype) if weight is not None and wanted[1] else None,
            to_bias if wanted[2] else None,
            *(None,) * 5,
        )


def _check(func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what would quietly average over a part of the batch. Raises: ModelError."""
    name = str(getattr(func, "__name__", ""))
    if any(refused in name for refused in _REFUSED):
        raise ModelError(f"{name}: not known over several processes; want torch.nn.BatchNorm, or a single process")
    if name.startswith("instance_norm"):
        names = (*_FUNCTIONAL[:5], "use_input_stats") if func is functional.instance_norm else _INSTANCE_NORM
        given = {"use_input_stats": True, **dict(zip(names, args, strict=False)), **kwargs}
        if given["use_input_stats"] and given.get("running_mean") is not None:
            raise ModelError(
                "instance normalisation with running statistics: not known over several processes; want "
                "track_running_stats=False, or a single process"
            )


def _but_channels(values: Tensor) -> list[int]:
    return [axis for axis in range(values.dim()) if axis != 1]
