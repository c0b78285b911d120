"""All that must hold for one composed network and some keep sets, with the errors that were seen."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.trial import relative_error
from curlfx.cost import CostModel, macs, params
from curlfx.coupling import Coupling
from curlfx.deploy import export_onnx, parity, prepare
from curlfx.graph import TracedModel
from tests.networks.composed import Recipe
from tests.oracles import Keep, Laboratory

__all__ = ["GATED", "ONNX", "Examination", "examine"]

GATED = 1e-9  # largest relative error of slim against gated, float64
ONNX = 1e-4  # of onnxruntime against slim, float32


@dataclass
class Examination:
    """What was seen; filled as it goes, so that it says how far a failed one came.

    Attributes:
        stage: What was being checked last.
        nodes: Nodes of the traced graph.
        free: Share of the channels that may go, among all but the outputs of the network.
        removed: Share of all free channels that went, mean over the keep sets.
        gated: Worst relative error of slim against gated.
        onnx: Relative error of onnxruntime against slim; None where it was not asked for.
        seconds: CPU time by stage.
    """

    stage: str = "build"
    nodes: int = 0
    free: float = 0.0
    removed: float = 0.0
    gated: float = 0.0
    onnx: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        self.stage = stage
        start = time.process_time()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start


def examine(
    recipe: Recipe,
    keep_of: Callable[[Coupling], Keep],
    *,
    keeps: int = 1,
    onnx: bool = True,
    into: Examination | None = None,
) -> Examination:
    """Check a network: gated equals slim at two batch sizes, its weights are finite, its cost is as predicted.

    Args:
        recipe: The network.
        keep_of: Draws a keep set.
        keeps: How many keep sets; onnxruntime computes the first.
        onnx: Whether to export the slim network and compare.
        into: Filled in place.

    Raises: AssertionError with what was seen; whatever the code under test raises.
    """
    seen = into or Examination()
    with seen("trace"):
        laboratory = Laboratory.of(recipe.build(), recipe.inputs())
    assert laboratory.traced.dynamic_batch, f"traced at one batch size: {laboratory.traced.notes}"
    coupling = laboratory.coupling
    seen.nodes, seen.free = len(laboratory.traced.graph.nodes), _free(coupling)
    for number in range(keeps):
        keep = keep_of(coupling)
        slim = _compared(laboratory, recipe, keep, seen)
        gone = 1 - (coupling.alive(keep).sum() - 1) / coupling.total if coupling.total else 0.0
        seen.removed += float(gone) / keeps
        if onnx and number == 0:
            with seen("onnx"):
                seen.onnx = _exported(slim, recipe)
            assert seen.onnx <= ONNX, f"onnxruntime differs from slim by {seen.onnx:.1e}; keep {dict(keep)}"
    return seen


def _free(coupling: Coupling) -> float:
    stuck = sum(frozen.width for frozen in coupling.frozen if "output of the network" not in frozen.reason)
    return coupling.total / (coupling.total + stuck) if coupling.total else 0.0


def _compared(laboratory: Laboratory, recipe: Recipe, keep: Keep, seen: Examination) -> TracedModel:
    with seen("slim"):
        slim = laboratory.slim(keep)
    for statistics in ["kept"] if laboratory.changes_statistics(keep) else ["kept", "all"]:
        with seen("gate"):
            gated = laboratory.gated(keep, statistics=statistics).module.eval()
        for batch in (2, 3):
            with seen("compare"), torch.no_grad():
                error = relative_error(slim.module.eval()(*recipe.inputs(batch)), gated(*recipe.inputs(batch)))
            seen.gated = max(seen.gated, error)
            where = f"batch {batch}, statistics over {statistics}"
            assert error <= GATED, f"slim differs from gated by {error:.1e} at {where}; keep {dict(keep)}"
    for name, tensor in slim.module.state_dict().items():
        assert bool(torch.isfinite(tensor).all()), f"{name} of the slim network is not finite; keep {dict(keep)}"
    with seen("cost"):
        cost = CostModel(laboratory.traced, laboratory.coupling).evaluate(laboratory.coupling.alive(keep))
        predicted, counted = (cost.macs, cost.params), (sum(macs(slim).values()), sum(params(slim).values()))
    assert predicted == counted, f"MACs and parameters predicted {predicted}, counted {counted}; keep {dict(keep)}"
    return slim


def _exported(slim: TracedModel, recipe: Recipe) -> float:
    """Error of the exported file in onnxruntime, in float32, at the batch size of the trace and another."""
    prepared, module = (copy.deepcopy(network.module).float() for network in (prepare(slim), slim))
    inputs = tuple(x.float() for x in recipe.inputs())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.onnx"
        export_onnx(prepared, inputs, path)
        return parity(module, path, inputs, (2, 3), threads=1).worst
