"""Two forms of a network that must compute the same: run both, in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curlfx.errors import VerificationError
from curlfx.graph.traced import TracedModel

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative error by the type of the parameters, which are rounded to it."""
_BOUND_OF_HALF = 5e-2


def insist(before: TracedModel, after: TracedModel, name: str) -> None:
    """Compare two networks on the example inputs of the first, in inference mode.

    Raises: VerificationError naming the pass, with the error of the first output beyond the bound.
    """
    types = {parameter.dtype for parameter in after.module.parameters() if parameter.is_floating_point()}
    bound = max((BOUNDS.get(one, _BOUND_OF_HALF) for one in types), default=BOUNDS[torch.float64])
    pairs = zip(*(pytree.tree_leaves(_outputs(network)) for network in (before, after)), strict=True)
    errors = (_relative(one, other) for one, other in pairs if isinstance(one, Tensor))
    error = next((error for error in errors if not error <= bound), None)  # NaN is not, and a maximum may lose it
    if error is not None:
        raise VerificationError(
            f"{name}: outputs before and after differ by {error:.1e} of the largest, want at most {bound:.0e}; "
            "are all weights finite?"
        )


def _outputs(network: TracedModel) -> Any:
    double = copy.deepcopy(network).to(torch.float64)
    place = next((parameter.device for parameter in double.module.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        return double.module.eval()(*double.to(place).example_inputs)


def _relative(wanted: Tensor, found: Tensor) -> float:
    """``max|wanted - found| / max|wanted|``; NaN where something is not finite."""
    if wanted.numel() == 0:
        return 0.0
    scale = float(wanted.abs().max())
    return float((wanted - found).abs().max()) / (scale if scale else 1.0)
