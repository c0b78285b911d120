"""Verification: the slim network against the intact one with gates, and the ONNX files against torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curlfx.coupling import Coupling, GroupId
from curlfx.deploy.parity import relative_error
from curlfx.errors import VerificationError
from curlfx.graph.traced import TracedModel
from curlfx.passes.gate import Gate, set_gates
from curlfx.passes.slim import Slim

GATED_BOUND = 1e-9


def gated_vs_slim(
    traced: TracedModel, coupling: Coupling, keep: Mapping[GroupId, Sequence[int]], images: Tensor
) -> float:
    """How far the slim network is from the intact one whose removed channels are multiplied by zero, in float64.

    LayerNorm and GroupNorm that average over channels of which some go do so over the kept ones in both networks.

    Shapes: images ``(N, C, H, W)``.
    Units: largest difference of the outputs divided by the largest output.
    """
    alive = coupling.alive(keep)
    if bool(alive.all()):
        return 0.0
    double = copy.deepcopy(traced).to(torch.float64)
    gated = Gate(coupling, statistics="kept")(double)
    set_gates(gated.module, torch.from_numpy(alive).to(torch.float64))
    slim = Slim(coupling, keep)(double)
    inputs = images.to(torch.float64)
    with torch.inference_mode():
        return _worst(gated.module.eval()(inputs), slim.module.eval()(inputs))


def _worst(wanted: object, found: object) -> float:
    """Largest relative error over all tensors of two outputs."""
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
    return max(relative_error(a.numpy(), b.numpy()) for a, b in pairs if isinstance(a, Tensor))


def require(name: str, error: float, bound: float) -> None:
    """Raises: VerificationError when ``error`` is above ``bound`` or not a number."""
    if not error <= bound:
        raise VerificationError(f"{name}: outputs differ by {error:.1e} relative, want at most {bound:.0e}")
