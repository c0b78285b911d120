"""What planning by measured latency is worth: `curlfx run` with a latency target beside one by MACs, equally fast.

For every seed the whole job runs with ``target.latency_ms``. Then the MACs target is bisected, with the scores of that
run, until its plan is measured as fast as the first, side by side, and the whole job runs once more with it; and the
same with widths that are not rounded. All slim networks are timed beside the dense one, interleaved. Finished runs are
read again, and interrupted ones go on.

    python benchmarks/latency_accuracy.py --model curlfx:resnet56 --data cifar10:DIR --weights resnet56.safetensors
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from records import Lines, spread
from tables import fixed, markdown, percent, processor, publish

from curlfx import run
from curlfx.cost import CostModel
from curlfx.coupling import couple
from curlfx.deploy import BenchSettings, bench
from curlfx.deploy.export import export_onnx
from curlfx.deploy.prepare import prepare
from curlfx.importance import Scores
from curlfx.planning import slim
from curlfx.run.settings import make_config
from curlfx.run.subject import load_subject, make_plan

STEPS = 7
CLOSE = 0.01
OUT = Path("runs") / "latency_accuracy"
LATENCY, MACS, UNROUNDED = "latency", "MACs", "MACs, widths not rounded"
ARMS: dict[str, dict[str, Any]] = {MACS: {}, UNROUNDED: {"round_to": 1}}


def settings(arguments: argparse.Namespace, seed: int, target: dict[str, str], **others: Any) -> dict[str, Any]:
    """Configuration of one run."""
    return {
        **others,
        "model": arguments.model,
        "weights": str(arguments.weights),
        "data": arguments.data,
        "limit": arguments.limit,
        "image_size": arguments.size,
        "seed": seed,
        "threads": arguments.threads,
        "target": target,
        "latency_probes": arguments.probes,
        "importance": arguments.importance,
        "floor": arguments.floor,
        "recovery": {"epochs": arguments.epochs, "lr": arguments.lr, "batch_size": arguments.batch_size},
    }


def finished(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Summary of the run in ``folder``, which is made, continued or only read."""
    request = {"resume": str(folder)} if (folder / "config.yaml").exists() else {**config, "out": str(folder)}
    return dict(run(request, progress=Lines(folder.name, 30), say=lambda line: print(line, file=sys.stderr)).summary)


def equally_fast(arguments: argparse.Namespace, seed: int, folder: Path, found: Path, **others: Any) -> str:
    """The MACs target whose plan takes as long as the slim network in ``folder``, with the scores of that run.

    It is kept in the file ``found``.
    """
    if found.exists():
        return str(json.loads(found.read_text(encoding="utf-8"))["macs"])
    traced = load_subject(make_config(settings(arguments, seed, {"macs": "50%"}))).trace()
    coupling = couple(traced)
    scores = Scores.from_json((folder / "checkpoints" / "scores.json").read_text(encoding="utf-8"))
    costs = CostModel(traced, coupling)
    low, high, best = 0.1, 1.0, (float("inf"), "")
    with TemporaryDirectory() as scratch:
        other = Path(scratch) / "other.onnx"
        for _ in range(STEPS):
            target = f"{50 * (low + high):.2f}%"
            config = make_config(settings(arguments, seed, {"macs": target}, **others))
            chosen = make_plan(config, traced, coupling, lambda *_: scores, costs)
            ready = prepare(slim(traced, chosen, coupling))
            export_onnx(ready.module, ready.example_inputs, other)
            timed = bench([folder / "slim.onnx", other], BenchSettings(rounds=arguments.rounds)).entries
            share = timed[1].latency_ms.median / timed[0].latency_ms.median
            print(f"{target} of the MACs: {share:.3f} of the plan by latency", file=sys.stderr, flush=True)
            best = min(best, (abs(share - 1), target))
            if best[0] <= CLOSE:
                break
            low, high = (low, (low + high) / 2) if share > 1 else ((low + high) / 2, high)
    found.write_text(json.dumps({"macs": best[1]}), encoding="utf-8")
    return best[1]


def rows_of(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The rows of one seed."""
    first = arguments.out_dir / f"latency-{seed}"
    folders = {LATENCY: first}
    summaries = {LATENCY: finished(first, settings(arguments, seed, {"latency_ms": arguments.latency}))}
    for title, others in ARMS.items():
        folders[title] = arguments.out_dir / f"macs-{seed}{'-unrounded' * (title == UNROUNDED)}"
        target = {"macs": equally_fast(arguments, seed, first, folders[title].with_suffix(".json"), **others)}
        summaries[title] = finished(folders[title], settings(arguments, seed, target, **others))
    files = [first / "dense.onnx", *(folder / "slim.onnx" for folder in folders.values())]
    dense, *timed = bench(files, BenchSettings(rounds=arguments.rounds), progress=Lines("bench", 30)).entries
    return [
        {
            "title": title,
            "target": summary["target"],
            "dense": summary["dense"]["accuracy"],
            "slimmed": summary["recovery"]["accuracy_before"],
            "accuracy": summary["slim"]["accuracy"],
            "macs": summary["slim"]["macs"] / summary["dense"]["macs"],
            "params": summary["slim"]["params"] / summary["dense"]["params"],
            "share": entry.latency_ms.median / dense.latency_ms.median,
            "speedup": entry.speedup,
        }
        for (title, summary), entry in zip(summaries.items(), timed, strict=True)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All kinds of plan, all seeds."""
    cells = []
    for title in (LATENCY, *ARMS):
        mine = [row for row in rows if row["title"] == title]
        low, high = min(row["speedup"].low for row in mine), max(row["speedup"].high for row in mine)
        targets = ", ".join(str(next(iter(row["target"].values()))) for row in mine)
        cells.append(
            [
                title,
                targets,
                percent(statistics.mean(row["macs"] for row in mine)),
                percent(statistics.mean(row["params"] for row in mine)),
                percent(statistics.mean(row["share"] for row in mine)),
                f"{fixed(low)} to {fixed(high)}",
                spread([row["slimmed"] for row in mine]),
                spread([row["accuracy"] for row in mine]),
                fixed(100 * statistics.mean(row["accuracy"] - row["dense"] for row in mine)),
            ]
        )
    heads = ("target", "asked", "MACs", "params", "latency", "speed-up", "top-1 % after slimming", "recovered", "loss")
    return markdown(heads, cells)


def main() -> None:
    """Parse the command line, run or read the jobs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="curlfx:resnet56")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=32, help="pixels per side of an image")
    parser.add_argument("--latency", default="50%", help="target of the first run")
    parser.add_argument("--importance", default="kl", help="criterion of all runs")
    parser.add_argument("--floor", type=float, default=0.3, help="share of every group that stays, in all runs")
    parser.add_argument("--probes", type=int, default=24, help="random plans measured for the latency table")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1])
    parser.add_argument("--epochs", type=int, default=8, help="of the recovery")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit", type=int, help="training images, and test images")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, help="of torch; latency is always that of one thread")
    parser.add_argument("--out-dir", type=Path, default=OUT, help="folder of the runs")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    arguments = parser.parse_args()
    rows = [row for seed in arguments.seeds for row in rows_of(arguments, seed)]
    seeds = ", ".join(map(str, arguments.seeds))
    head = (
        f"{processor()}; onnxruntime on the CPU, one thread, batch 1. {arguments.model}, dense "
        f"{100 * rows[0]['dense']:.2f} %, channels by {arguments.importance}, floor {arguments.floor:g}, "
        f"{arguments.epochs} epochs of recovery, seeds {seeds}; accuracies: mean ± half the range."
    )
    text = f"{head}\n\n{table(rows)}"
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
