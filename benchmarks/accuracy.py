"""Accuracy at a budget: criteria and controls side by side, with the same recovery for all of them.

Every arm slims the same pretrained network to the same MACs and recovers it with the same images, epochs and learning
rate; only the choice of channels differs. "uniform" gives every group the same share of channels, ranked by magnitude.
A row that is on record is not measured again.

    python benchmarks/accuracy.py --data cifar10 --weights resnet20.safetensors --epochs 8 --seeds 0,1
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tables import fixed, markdown, percent

from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import SlimPlan, plan, slim
from curlfx.progress import StepEvent
from curlfx.recovery import TrainSettings, evaluate, recover
from curlfx.sources import DataSource, load_data, load_model

Row = dict[str, Any]

RECORD = Path(__file__).parent / "results" / "accuracy.jsonl"

# Name of the arm: (criterion, allocation).
ARMS: dict[str, tuple[str, str]] = {
    "kl": ("kl", "global"),
    "magnitude": ("magnitude", "global"),
    "random": ("random", "global"),
    "uniform": ("magnitude", "uniform"),
}


class Lines:
    """Progress as a line on standard error every few seconds."""

    def __init__(self, arm: str, every: float = 10.0) -> None:
        self.arm, self.every, self.last = arm, every, 0.0

    def on_step(self, event: StepEvent) -> None:
        """Print the step when the last print is long enough ago."""
        now = time.monotonic()
        if now - self.last < self.every and event.step != event.total:
            return
        self.last = now
        loss = "" if event.loss is None else f", loss {event.loss:.3f}"
        left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
        print(f"{self.arm}: {event.stage} {event.step}/{event.total}{loss}{left}", file=sys.stderr, flush=True)


class Bench:
    """The dense network, its data and what all arms share.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model = load_model(arguments.model, weights=arguments.weights)
        spec = arguments.data if ":" in arguments.data else f"imagefolder:{arguments.data}"
        shape = (3, arguments.size, arguments.size)
        self.data: DataSource = load_data(spec, shape=shape)
        self.recovery_data = self._limited(spec, shape, arguments.train_limit)
        self.traced: TracedModel = trace(self.model, (self.data.proxy(2),))
        self.coupling: Coupling = couple(self.traced)
        self.test = self._limited(spec, shape, arguments.test_limit).loader("test", 500)
        self.dense_accuracy = evaluate(self.traced.module, self.test)
        self._scores: dict[tuple[str, int], Scores] = {}

    def _limited(self, spec: str, shape: tuple[int, int, int], limit: int | None) -> DataSource:
        """The data, or every class's share of ``limit`` images of it."""
        return self.data if limit is None else load_data(spec, shape=shape, limit=limit)

    def scores(self, criterion: str, seed: int) -> Scores:
        """Scores of one criterion, computed once per seed."""
        key = (criterion, seed)
        if key not in self._scores:
            proxy = self.data.proxy(self.arguments.proxy, seed)
            self._scores[key] = score(
                self.traced, self.coupling, importance=criterion, data=[proxy], seed=seed, progress=Lines(criterion)
            )
        return self._scores[key]

    def settings(self, seed: int) -> TrainSettings:
        """The recovery, the same for every arm."""
        arguments = self.arguments
        return TrainSettings(
            epochs=arguments.epochs,
            lr=arguments.lr,
            batch_size=arguments.batch_size,
            seed=seed,
            device=arguments.device,
        )

    def row(self, arm: str, seed: int) -> Row:
        """Slim, judge, recover, judge."""
        criterion, allocation = ARMS[arm]
        start = time.perf_counter()
        scores = self.scores(criterion, seed)
        decision: SlimPlan = plan(
            self.traced,
            self.coupling,
            scores,
            target={"macs": self.arguments.target},
            round_to=1,
            allocation=allocation,
        )
        slimmed = slim(self.traced, decision, self.coupling)
        decided = time.perf_counter() - start
        after_slimming = evaluate(slimmed.module, self.test)
        settings = self.settings(seed)
        loader = self.recovery_data.loader("train", settings.batch_size, seed=seed, augment=True, shuffle=True)
        recover(slimmed.module, loader, settings, teacher=self.traced.module, progress=Lines(f"{arm} {seed}"))
        cost, dense = decision.after, decision.before
        return {
            **self.key(arm, seed),
            "base_accuracy": self.dense_accuracy,
            "macs": cost.macs,
            "macs_ratio": cost.macs / dense.macs,
            "params": cost.params,
            "params_ratio": cost.params / dense.params,
            "accuracy_slimmed": after_slimming,
            "accuracy": evaluate(slimmed.module, self.test),
            "decision_seconds": round(decided, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def key(self, arm: str, seed: int) -> Row:
        """What makes a measurement what it is; a row on record with the same key is not measured again."""
        return key(self.arguments, arm, seed)


def key(arguments: argparse.Namespace, arm: str, seed: int) -> Row:
    """The settings of one measurement."""
    names = ("model", "target", "epochs", "lr", "batch_size", "train_limit", "test_limit", "proxy", "size")
    return {"arm": arm, "seed": seed, **{name: getattr(arguments, name) for name in names}}


def read_record(path: Path) -> list[Row]:
    """All rows on record."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def spread(values: Sequence[float]) -> str:
    """Mean of some accuracies in percent, and half their range."""
    half = (max(values) - min(values)) / 2
    return f"{100 * statistics.mean(values):.2f} ± {100 * half:.2f}"


def table(rows: Sequence[Row]) -> str:
    """One row per arm: means over the seeds, ± half the range."""
    headers = ["channels chosen by", "seeds", "MACs", "of dense", "params", "of dense"]
    headers += ["top-1 % after slimming", "top-1 % recovered", "loss to dense", "min per seed"]
    body = []
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        recovered = [row["accuracy"] for row in mine]
        mean = {
            name: statistics.mean(row[name] for row in mine)
            for name in ("macs", "macs_ratio", "params", "params_ratio")
        }
        body.append(
            [
                arm,
                ", ".join(str(row["seed"]) for row in mine),
                f"{mean['macs'] / 1e6:.2f} M",
                percent(mean["macs_ratio"]),
                f"{mean['params'] / 1e3:.0f} k",
                percent(mean["params_ratio"]),
                spread([row["accuracy_slimmed"] for row in mine]),
                spread(recovered),
                f"{100 * (statistics.mean(recovered) - mine[0]['base_accuracy']):+.2f}",
                fixed(statistics.mean(row["seconds"] for row in mine) / 60, 1),
            ]
        )
    return markdown(headers, body)


def describe(arguments: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The sentence above the table."""
    settings = TrainSettings(epochs=arguments.epochs, lr=arguments.lr, batch_size=arguments.batch_size)
    images = "all training images" if arguments.train_limit is None else f"{arguments.train_limit} training images"
    base = f"{100 * rows[0]['base_accuracy']:.2f} %" if rows else "not measured"
    return (
        f"{arguments.model}, base accuracy {base}, target {arguments.target} of the MACs. Recovery: {settings.epochs} "
        f"epochs over {images}, batch {settings.batch_size}, SGD with Nesterov momentum {settings.momentum}, peak "
        f"learning rate {settings.lr}, cosine, weight decay {settings.weight_decay}, distillation from the dense "
        f"network (weight {settings.distillation}, temperature {settings.temperature}), pad-and-crop and flip. "
        f"KL over {arguments.proxy} training images. Accuracies: mean over seeds ± half their range."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder with train/ and test/, or a DATA specification")
    parser.add_argument("--weights", help="weights of the dense network (.safetensors)")
    parser.add_argument("--model", default="curlfx:resnet20")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    parser.add_argument("--target", default="50%", help="MACs to reach (default 50%%)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--train-limit", type=int, help="recover on this many training images, classes balanced (default all)"
    )
    parser.add_argument("--test-limit", type=int, help="judge on this many test images (default all)")
    parser.add_argument("--proxy", type=int, default=256, help="training images for the KL score")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--record", type=Path, default=RECORD, help="finished rows, one JSON object per line")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure what is not on record and print the table."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arms, seeds = arguments.arms.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        sys.exit(f"--arms {','.join(unknown)}: want some of {', '.join(ARMS)}")
    wanted = [key(arguments, arm, seed) for seed in seeds for arm in arms]
    record = read_record(arguments.record)
    rows: list[Row] = []
    bench: Bench | None = None
    for each in wanted:
        row = next((row for row in record if each.items() <= row.items()), None)
        if row is None:
            bench = bench or Bench(arguments)
            row = bench.row(each["arm"], each["seed"])
            arguments.record.parent.mkdir(parents=True, exist_ok=True)
            with arguments.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(f"{row['arm']} seed {row['seed']}: {row['accuracy']:.4f}", file=sys.stderr, flush=True)
    text = describe(arguments, rows) + "\n\n" + table(rows) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
