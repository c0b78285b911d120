"""Half of the channels of every network of a zoo removed at random: does the slim network compute what it should?

Per model: trace, couple, remove half of the free channels of every coupling group at random (blocks respected), slim,
compare with the gated network in float64, export to ONNX in float32 and compare with onnxruntime. Weights are freshly
initialised, normalisation statistics and affine parameters random. Every model runs in a process of its own on one
thread; a row that is on record is not measured again.

    python benchmarks/coverage.py --zoo torchvision
    python benchmarks/coverage.py --models resnet18,vit_b_16 --skip-onnx
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tables import fixed, markdown, percent, scientific
from zoo import ZOOS, Entry

Row = dict[str, Any]

RECORD = Path(__file__).parent / "results" / "coverage.jsonl"
GATED_TOLERANCE = 1e-9
ONNX_TOLERANCE = 1e-4
OUTPUTS = {"an output of the network"}
STAGES = ("trace", "couple", "slim", "verify", "export")


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


def measure(entry: Entry, *, keep_ratio: float, seed: int, onnx: bool) -> Row:
    """One row of the table.

    Args:
        entry: The network.
        keep_ratio: In (0, 1]: share of the channels of every group that stays.
        seed: Of weights, statistics, channels and inputs.
        onnx: Whether to export and compare with onnxruntime.

    Returns:
        What was measured; with the key "failure" when a stage raised or a comparison failed.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    watch = Stopwatch()
    row: Row = {"model": entry.name, "kind": entry.kind, "shape": list(entry.shape)}
    try:
        _measure(entry, row, watch, keep_ratio=keep_ratio, seed=seed, onnx=onnx)
    except Exception as error:  # noqa: BLE001 - the table reports every failure of every model
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        row["failure"] = f"{watch.stage}: {text}"
        traceback.print_exc()
    row.update(seconds=watch.seconds, wall_seconds=watch.wall)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def _measure(entry: Entry, row: Row, watch: Stopwatch, *, keep_ratio: float, seed: int, onnx: bool) -> None:
    import torch
    from trial import random_keep, randomise, relative_error

    from curlfx.cost import CostModel, macs
    from curlfx.coupling import couple
    from curlfx.graph import trace
    from curlfx.passes.gate import Gate, set_gates
    from curlfx.passes.pipeline import run
    from curlfx.passes.slim import Slim

    trace(torch.nn.Linear(2, 2), (torch.zeros(2, 2),))  # what torch.export imports on its first call is not the model's
    module = randomise(entry.build().double(), seed).eval()
    inputs = entry.inputs(2, seed)
    with watch("trace"):
        traced = trace(module, inputs)
    del module
    with watch("couple"):
        coupling = couple(traced)
    keep = random_keep(coupling.groups, keep_ratio, seed)
    row.update(
        nodes=len(traced.graph.nodes),
        groups=len(coupling.groups),
        channels=coupling.total,
        kept=coupling.total - sum(group.width - len(keep[group.id]) for group in coupling.groups if group.id in keep),
        statistics_change=sum(group.statistics_change for group in coupling.groups),
        notes=list(traced.notes),
        **frozen_share(coupling),
    )
    with watch("slim"):
        slim, _ = run(traced, [Slim(coupling, keep)])
    with watch("verify"):
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
    del gated, traced
    if row["gated_vs_slim"] > GATED_TOLERANCE:
        row["failure"] = f"verify: slim differs from gated by {row['gated_vs_slim']:.1e}"
    elif not row["cost_exact"]:
        row["failure"] = "verify: the cost model's MACs are not those of the slim network"
    elif keep and row["effect"] < 1e-6:
        row["failure"] = f"verify: removing channels changes the output by {row['effect']:.1e} only; nothing was tested"
    if onnx:
        with watch("export"):
            row["torch_vs_onnx"] = onnx_error(slim.to(torch.float32), tuple(x.float() for x in inputs))
        if row["torch_vs_onnx"] > ONNX_TOLERANCE:
            row.setdefault("failure", f"export: onnxruntime differs by {row['torch_vs_onnx']:.1e}")


def onnx_error(slim: Any, inputs: tuple[Any, ...]) -> float:
    """Worst relative difference between torch and onnxruntime at the example batch and at batch 1, float32."""
    import onnxruntime
    import torch
    from trial import flatten_outputs, relative_error

    from curlfx.deploy import export_onnx, prepare

    module = slim.module.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.onnx"
        export_onnx(prepare(slim).module, inputs, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        worst = 0.0
        for batch in (len(inputs[0]), 1):
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
    inside = total - sum(count for reason, count in reasons.items() if reason in OUTPUTS)
    return {
        "frozen": total / max(1, total + coupling.total),
        "frozen_inside": inside / max(1, inside + coupling.total),
        "reasons": dict(reasons.most_common(8)),
    }


def in_own_process(entry: Entry, arguments: argparse.Namespace) -> Row:
    """Measure in a fresh interpreter on one thread, so that neither memory nor caches of other models count."""
    command = [sys.executable, __file__, "--worker", "--zoo", arguments.zoo, "--models", entry.name]
    command += ["--seed", str(arguments.seed), "--keep-ratio", str(arguments.keep_ratio)]
    command += ["--skip-onnx"] if arguments.skip_onnx else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=arguments.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"model": entry.name, "kind": entry.kind, "failure": f"no result after {arguments.timeout} s"}
    if done.returncode == 0 and done.stdout.strip():
        row: Row = json.loads(done.stdout.strip().splitlines()[-1])
        if "failure" in row and arguments.verbose:
            print(done.stderr[-4000:], file=sys.stderr)
        return row
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"model": entry.name, "kind": entry.kind, "failure": f"process ended with {done.returncode}: {last[:200]}"}


def read_record(path: Path) -> dict[str, Row]:
    """Rows on record by model; the last of several counts."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["model"]: row for row in rows}


def stale(row: Row, arguments: argparse.Namespace) -> bool:
    """Whether a row on record must be measured again: a failure to retry, or one without the ONNX columns."""
    if "failure" in row:
        return bool(arguments.retry)
    return not arguments.skip_onnx and "torch_vs_onnx" not in row


def table(rows: Sequence[Row]) -> str:
    """The table, one row per model."""
    headers = ["model", "nodes", "groups", "channels", "frozen", "inside", "why frozen (channels)", "MACs left"]
    headers += ["gated vs slim", "torch vs onnx", *(f"{stage} s" for stage in STAGES), "GiB", "statistics", "result"]
    body = []
    for row in rows:
        seconds = row.get("seconds", {})
        reasons = [f"{reason}: {count}" for reason, count in list(row.get("reasons", {}).items())[:3]]
        body.append(
            [
                row["model"],
                str(row.get("nodes", "")),
                str(row.get("groups", "")),
                str(row.get("channels", "")),
                percent(row.get("frozen")),
                percent(row.get("frozen_inside")),
                "; ".join(reasons).replace("|", "/"),
                percent(row["slim_macs"] / row["macs"]) if row.get("macs") else "",
                scientific(row.get("gated_vs_slim")),
                scientific(row.get("torch_vs_onnx")),
                *(fixed(seconds.get(stage)) for stage in STAGES),
                fixed(row.get("peak_gib"), 1),
                f"{row['statistics_change']} groups" if row.get("statistics_change") else "",
                f"FAIL {row['failure']}".replace("|", "/") if "failure" in row else "ok",
            ]
        )
    return markdown(headers, body)


def summary(rows: Sequence[Row]) -> list[str]:
    """The lines below the table."""
    passed = [row for row in rows if "failure" not in row]
    exact = [row for row in rows if "gated_vs_slim" in row and not row["statistics_change"]]
    changed = [row for row in rows if "gated_vs_slim" in row and row["statistics_change"]]
    lines = [f"{len(passed)} of {len(rows)} models passed."]
    for rows_of_kind, words in ((exact, "without"), (changed, "with")):
        if rows_of_kind:
            worst = max(rows_of_kind, key=lambda row: float(row["gated_vs_slim"]))
            lines.append(
                f"Gated vs slim, {len(rows_of_kind)} models {words} normalisation across free channels: "
                f"worst {worst['gated_vs_slim']:.1e} ({worst['model']})."
            )
    onnx = [row for row in rows if "torch_vs_onnx" in row]
    if onnx:
        worst = max(onnx, key=lambda row: float(row["torch_vs_onnx"]))
        lines.append(
            f"Torch vs onnxruntime, {len(onnx)} models: worst {worst['torch_vs_onnx']:.1e} ({worst['model']}), "
            f"median {statistics.median(row['torch_vs_onnx'] for row in onnx):.1e}."
        )
    compiled = [row for row in rows if "slim" in row.get("seconds", {})]
    if compiled:
        total = {row["model"]: sum(row["seconds"][stage] for stage in ("trace", "couple", "slim")) for row in compiled}
        slowest = max(total, key=lambda model: total[model])
        couple = statistics.median(row["seconds"]["couple"] for row in compiled)
        lines.append(
            f"Trace to slim, CPU time on one thread: median {statistics.median(total.values()):.2f} s, "
            f"slowest {total[slowest]:.1f} s ({slowest}); coupling alone: median {couple:.3f} s."
        )
        most = max(compiled, key=lambda row: float(row["frozen_inside"]))
        whole = sum(not row["frozen_inside"] for row in compiled)
        lines.append(
            f"Frozen channels: median {statistics.median(row['frozen'] for row in compiled):.1%}; besides the outputs "
            f"of the network none in {whole} models, most {most['frozen_inside']:.1%} ({most['model']})."
        )
    return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", choices=sorted(ZOOS), default="torchvision")
    parser.add_argument("--models", help="names, separated by commas (default: all of the zoo)")
    parser.add_argument("--skip-onnx", action="store_true", help="neither export nor run onnxruntime")
    parser.add_argument("--keep-ratio", type=float, default=0.5, help="share of every group that stays (default 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=RECORD, help="finished rows, one JSON object per line")
    parser.add_argument("--fresh", action="store_true", help="measure the chosen models again")
    parser.add_argument("--retry", action="store_true", help="measure the chosen models that failed again")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds per model")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    parser.add_argument("--out", type=Path, help="write table and summary to this Markdown file too")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of every failure")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def chosen(arguments: argparse.Namespace) -> list[Entry]:
    """The entries that the command line names."""
    zoo: Mapping[str, Entry] = ZOOS[arguments.zoo]()
    names = arguments.models.split(",") if arguments.models else list(zoo)
    unknown = [name for name in names if name not in zoo]
    if unknown:
        sys.exit(f"--models {','.join(unknown)}: not in {arguments.zoo}; it has {', '.join(zoo)}")
    return [zoo[name] for name in names]


def main() -> int:
    """Measure what is not on record, print the table; 1 when a model failed."""
    arguments = parse()
    entries = chosen(arguments)
    if arguments.worker:
        row = measure(entries[0], keep_ratio=arguments.keep_ratio, seed=arguments.seed, onnx=not arguments.skip_onnx)
        print("\n" + json.dumps(row))
        return 0
    rows = []
    known = {} if arguments.fresh else read_record(arguments.record)
    for number, entry in enumerate(entries, 1):
        row = known.get(entry.name)
        if row is None or stale(row, arguments):
            row = in_own_process(entry, arguments)
            arguments.record.parent.mkdir(parents=True, exist_ok=True)
            with arguments.record.open("a", encoding="utf-8") as record:
                record.write(json.dumps(row) + "\n")
        rows.append(row)
        print(f"{number}/{len(entries)} {entry.name}: {row.get('failure', 'ok')}", file=sys.stderr, flush=True)
    text = table(rows) + "\n\n" + "\n".join(f"- {line}" for line in summary(rows)) + "\n"
    print(json.dumps(rows, indent=1) if arguments.json else text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return int(any("failure" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
