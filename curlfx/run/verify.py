"""Verification: the slim network against the intact one with gates, and the ONNX files against torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curlfx.coupling import Coupling, GroupId
from curlfx.deploy import parity
from curlfx.deploy.parity import relative_error
from curlfx.errors import VerificationError
from curlfx.graph.traced import TracedModel
from curlfx.passes.gate import Gate, set_gates
from curlfx.passes.slim import Slim
from curlfx.planning import SlimPlan

GATED = "gated vs slim, float64"
GATED_BOUND = 1e-9
MASKED = "trained vs slim, float64"
GRAPH = "saved graph vs torch"
GRAPH_BOUND = 1e-5  # 0 where both lay their weights out alike
OTHER_BATCH = 3
VERIFIED_IMAGES = 4
"""Images on which a run compares networks that must agree."""


@dataclass(frozen=True)
class Check:
    """One comparison of two forms of the same network.

    Attributes:
        name: What was compared.
        error: Largest difference of the outputs divided by the largest wanted output.
        bound: The largest error that passes.
    """

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the bound."""
        return self.error <= self.bound


@dataclass(frozen=True)
class VerifyReport:
    """All comparisons of one network.

    Attributes:
        checks: In the order they were made.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """Insist. Raises: VerificationError naming every check that failed."""
        failed = [
            f"{one.name}: off by {one.error:.1e}, want at most {one.bound:.0e}" for one in self.checks if not one.passed
        ]
        if failed:
            raise VerificationError("; ".join(failed))


def verify(
    traced: TracedModel,
    plan: SlimPlan,
    images: Tensor,
    *,
    coupling: Coupling | None = None,
    slim: TracedModel | None = None,
    files: Mapping[str, Path] = MappingProxyType({}),
) -> VerifyReport:
    """Check a plan on a network, and ONNX files against the networks they were made from.

    Args:
        traced: The dense network.
        plan: What was removed.
        images: Images to compare on.
        coupling: As the plan was made with; none finds it again.
        slim: The slim network as it is now, with recovered weights; none slims ``traced``.
        files: ONNX files to compare, by ``dense`` and ``slim``.

    Shapes: images ``(N, C, H, W)``.
    Raises: PlanError when the plan is for another network; ModelError for a file that cannot be run.
    """
    coupling = coupling or plan.couple(traced)
    plan.check(traced, coupling)
    checks = [gated_vs_slim(traced, coupling, plan.keep, images)]
    networks = {"dense": traced, "slim": slim or Slim(coupling, plan.keep)(traced)}
    for name, path in files.items():
        checks += torch_vs_onnx(name, networks[name], path, images)
    return VerifyReport(tuple(checks))


def torch_vs_onnx(name: str, network: TracedModel, path: Path, images: Tensor) -> list[Check]:
    """Compare a network in float32 with its ONNX file, for one image and for several. Raises: ModelError."""
    found = parity(network.module, path, (images,), (1, OTHER_BATCH))
    return [
        Check(f"torch vs onnx, {name}, {one.output}, batch {one.batch}", one.relative, found.tolerance)
        for one in found.deviations
    ]


def graph_vs_slim(network: TracedModel, graph: TracedModel) -> Check:
    """How far a saved graph is from the network, on its example inputs; both run the same ops on the same weights."""
    with torch.inference_mode():
        wanted, found = (one.module.eval()(*network.example_inputs) for one in (network, graph))
    return Check(GRAPH, _worst(wanted, found), GRAPH_BOUND)


def gated_vs_slim(
    traced: TracedModel, coupling: Coupling, keep: Mapping[GroupId, Sequence[int]], images: Tensor
) -> Check:
    """How far the slim network is from the intact one whose removed channels are multiplied by zero, in float64.

    LayerNorm and GroupNorm that average over channels of which some go do so over the kept ones in both networks.

    Shapes: images ``(N, C, H, W)``.
    """
    alive = coupling.alive(keep)
    if bool(alive.all()):
        return Check(GATED, 0.0, GATED_BOUND)
    double = copy.deepcopy(traced).to(torch.float64)
    gated = Gate(coupling, statistics="kept")(double)
    set_gates(gated.module, torch.from_numpy(alive).to(torch.float64))
    slim = Slim(coupling, keep)(double)
    inputs = images.to(torch.float64)
    with torch.inference_mode():
        error = _worst(gated.module.eval()(inputs), slim.module.eval()(inputs))
    return Check(GATED, error, GATED_BOUND)


def masked_vs_slim(masked: TracedModel, slim: TracedModel, trained: TracedModel, images: Tensor) -> Check:
    """How far two slim networks are from the dense one with zero weights in place of what is gone, in float64.

    Args:
        masked: The dense network.
        slim: What a plan leaves of it.
        trained: The slim network that the training left.

    Shapes: images ``(N, C, H, W)``.
    """
    inputs = images.to(torch.float64)
    with torch.inference_mode():
        wanted, *found = (copy.deepcopy(one).to(torch.float64).module.eval()(inputs) for one in (masked, slim, trained))
        error = max(_worst(wanted, one) for one in found)
    return Check(MASKED, error, GATED_BOUND)


def _worst(wanted: object, found: object) -> float:
    """Largest relative error over all tensors of two outputs."""
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
    return max(relative_error(a.numpy(), b.numpy()) for a, b in pairs if isinstance(a, Tensor))
