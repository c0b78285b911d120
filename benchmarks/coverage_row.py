"""What is measured of one network: trace, couple, remove half of the channels, compare, export, compare again."""

import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import Entry

__all__ = ["CANNOT", "STAGES", "Row", "Settings", "cannot", "free_share", "frozen_share", "measure"]

Row = dict[str, Any]

GATED_TOLERANCE = 1e-9
ONNX_TOLERANCE = 1e-4
STAGES = ("trace", "couple", "slim", "verify", "export")

CANNOT: dict[str, str] = {
    "an output of the network": "asked for by whoever uses the network",
    "frozen by the user": "asked for by the user",
    "no layer computes these channels": "inputs and tables are data, not channels of a layer",
    "a whole tensor hangs on this one channel": "nothing would be left",
    "softmax": "a distribution over channels (cross-covariance heads): the others would change",
    "a convolution runs along the channels": "neighbouring channels are read by position (ECA)",
}
"""Part of a freeze's reason to why such a channel cannot go; all other reasons count as gaps."""


@dataclass(frozen=True)
class Settings:
    """What to do with every network.

    Attributes:
        keep_ratio: In (0, 1]: share of the channels of every group that stays.
        seed: Of weights, statistics, channels and inputs.
        onnx: Whether to export and compare with onnxruntime.
        couple_only: Whether to stop after coupling.
        verbose: Whether to print tracebacks.
    """

    keep_ratio: float = 0.5
    seed: int = 0
    onnx: bool = True
    couple_only: bool = False
    verbose: bool = False


class Stopwatch:
    """CPU seconds per stage, wall-clock seconds per stage, and the stage that is running.

    On one thread of an idle machine the two are the same; on a busy one, CPU seconds are still what the stage takes.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.stage = "build"

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        self.stage = stage
        start, wall = time.process_time(), time.perf_counter()
        yield
        self.seconds[stage] = round(time.process_time() - start, 4)
        self.wall[stage] = round(time.perf_counter() - wall, 4)


def measure(entry: Entry, settings: Settings) -> Row:
    """One row of the table: with the key "failure" when a stage raised or a comparison failed."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    watch = Stopwatch()
    row: Row = {"model": entry.name, "zoo": entry.zoo, "kind": entry.kind, "shape": list(entry.shape)}
    try:
        _measure(entry, row, watch, settings)
    except Exception as error:  # noqa: BLE001 - the table reports every failure of every model
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        row["failure"] = f"{watch.stage}: {text}"
        if settings.verbose:
            traceback.print_exc()
    row.update(seconds=watch.seconds, wall_seconds=watch.wall)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def _measure(entry: Entry, row: Row, watch: Stopwatch, settings: Settings) -> None:
    import torch
    from trial import random_keep, randomise

    from curlfx.coupling import couple
    from curlfx.graph import propagate, trace
    from curlfx.passes.pipeline import run
    from curlfx.passes.slim import Slim

    trace(torch.nn.Linear(2, 2), (torch.zeros(2, 2),))  # what torch.export imports on its first call is not the model's
    module = randomise(entry.build().double(), settings.seed).eval()
    inputs = entry.inputs(2, settings.seed)
    with watch("trace"):
        traced = trace(module, inputs)
    del module
    row.update(nodes=len(traced.graph.nodes), notes=list(traced.notes))
    row["lower_inside"] = lower_floats(traced)
    if row["lower_inside"]:  # compared in float64 throughout: float types that are written in the graph follow a cast
        propagate(traced.to(torch.float32).to(torch.float64))
    with watch("couple"):
        coupling = couple(traced)
    row.update(
        groups=len(coupling.groups),
        channels=coupling.total,
        statistics_change=sum(group.statistics_change for group in coupling.groups),
        unsupported=sorted({found.op for found in coupling.unsupported}),
        **frozen_share(coupling),
    )
    if settings.couple_only:
        return
    keep = random_keep(coupling.groups, settings.keep_ratio, settings.seed)
    row["kept"] = coupling.total - sum(g.width - len(keep[g.id]) for g in coupling.groups if g.id in keep)
    with watch("slim"):
        slim, _ = run(traced, [Slim(coupling, keep)])
    with watch("verify"):
        _verify(row, traced, coupling, keep, slim, inputs)
    del traced
    if settings.onnx:
        with watch("export"):
            _compare_onnx(row, slim.to(torch.float32), tuple(x.float() for x in inputs))
        if row["torch_vs_onnx"] > ONNX_TOLERANCE:
            row.setdefault("failure", f"export: onnxruntime differs by {row['torch_vs_onnx']:.1e}")


def _verify(row: Row, traced: Any, coupling: Any, keep: Any, slim: Any, inputs: tuple[Any, ...]) -> None:
    """Costs and outputs of the slim network against the gated one."""
    import torch
    from trial import relative_error

    from curlfx.cost import CostModel, macs
    from curlfx.passes.gate import Gate, set_gates
    from curlfx.passes.pipeline import run

    alive = coupling.alive(keep)
    row["macs"], row["slim_macs"] = sum(macs(traced).values()), sum(macs(slim).values())
    row["cost_exact"] = CostModel(traced, coupling).evaluate(alive).macs == row["slim_macs"]
    mode = "kept" if row["statistics_change"] else "all"
    gated, _ = run(traced, [Gate(coupling, statistics=mode)], own_weights=False)
    with torch.no_grad():
        whole = traced.module.eval()(*inputs)
        output = slim.module.eval()(*inputs)
        if coupling.total:
            set_gates(gated.module, torch.from_numpy(alive))
        expected = gated.module.eval()(*inputs)
    row["gated_vs_slim"] = relative_error(output, expected)
    row["effect"] = relative_error(output, whole) if keep else None
    if row["gated_vs_slim"] > GATED_TOLERANCE:
        row["failure"] = f"verify: slim differs from gated by {row['gated_vs_slim']:.1e}"
    elif not row["cost_exact"]:
        row["failure"] = "verify: the cost model's MACs are not those of the slim network"
    elif keep and row["effect"] < 1e-6:
        row["failure"] = f"verify: removing channels changes the output by {row['effect']:.1e} only; nothing was tested"


def lower_floats(traced: Any) -> list[str]:
    """Float types, lower than the network's own, in which a network computes on its inputs ("float32" in float64).

    A table that is computed in a lower type and depends on no input does not count: it is the same in both networks
    that are compared.
    """
    import torch

    own = {parameter.dtype for parameter in traced.module.parameters() if parameter.is_floating_point()}
    finest = min((torch.finfo(one).eps for one in own), default=0.0)
    found: set[str] = set()
    reached = set(traced.graph.find_nodes(op="placeholder"))
    for node in traced.graph.nodes:
        if reached.isdisjoint(node.all_input_nodes):
            continue
        reached.add(node)
        value = node.meta.get("val")
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_float and torch.finfo(value.dtype).eps > finest > 0:
            found.add(str(value.dtype).removeprefix("torch."))
    return sorted(found)


def _compare_onnx(row: Row, slim: Any, inputs: tuple[Any, ...]) -> None:
    """Export and compare; where the network cannot be exported for any batch size, for the size of the example."""
    from curlfx.errors import ModelError

    try:
        row["torch_vs_onnx"] = onnx_error(slim, inputs, dynamic_batch=slim.dynamic_batch)
    except ModelError as refused:
        if not slim.dynamic_batch:
            raise
        row["torch_vs_onnx"] = onnx_error(slim, inputs, dynamic_batch=False)
        row["fixed_batch"] = str(refused)[:300]


def onnx_error(slim: Any, inputs: tuple[Any, ...], *, dynamic_batch: bool) -> float:
    """Worst relative difference between torch and onnxruntime, float32.

    At the example batch, and at batch 1 where the file takes any.
    """
    import onnxruntime
    import torch
    from trial import flatten_outputs, relative_error

    from curlfx.deploy import export_onnx, prepare

    module = slim.module.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.onnx"
        export_onnx(prepare(slim).module, inputs, path, dynamic_batch=dynamic_batch)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        worst = 0.0
        for batch in (len(inputs[0]), *([1] if dynamic_batch else [])):
            fed = [x[:batch].contiguous() for x in inputs]
            with torch.no_grad():
                expected = flatten_outputs(module(*fed))
            actual = session.run(None, dict(zip(names, (x.numpy() for x in fed), strict=True)))
            worst = max(worst, relative_error([torch.from_numpy(output) for output in actual], expected))
    return worst


def frozen_share(coupling: Any) -> Row:
    """Share of the channels that must stay, and why.

    Returns:
        "frozen": frozen channels over all channels that layers make, the classes of a classifier among them;
        "frozen_inside": the same without those that are outputs of the network; "reasons": channels per reason.
    """
    reasons: Counter[str] = Counter()
    for frozen in coupling.frozen:
        reasons[frozen.reason] += frozen.width
    total = sum(reasons.values())
    inside = total - reasons["an output of the network"]
    return {
        "frozen": total / max(1, total + coupling.total),
        "frozen_inside": inside / max(1, inside + coupling.total),
        "reasons": dict(reasons.most_common()),
    }


def free_share(row: Row) -> float:
    """Free channels over all that could go, which leaves out what :data:`CANNOT`; 1 where none could."""
    gaps = sum(count for reason, count in row["reasons"].items() if not cannot(reason))
    return row["channels"] / (gaps + row["channels"]) if gaps else 1.0


def cannot(reason: str) -> bool:
    """Whether a channel frozen for this reason could not go whatever the rules said."""
    return any(part in reason for part in CANNOT)
