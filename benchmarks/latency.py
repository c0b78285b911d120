"""What a narrower network saves in onnxruntime: curlfx by MACs and by latency, and Torch-Pruning, interleaved.

Every row is exported by curlfx, so that only widths differ. "unrounded" takes the same share of every group, as
Torch-Pruning does by default; "rounded" the same in multiples of the runtime's block; "latency" measures a table and
chooses widths by it until the measured latency meets the target. Efficiency is speed-up over the ratio of the MACs:
what a MAC that went has saved. A row that is on record is not measured again.

    python benchmarks/latency.py --models resnet50,mobilenet_v2 --threads 1
    python benchmarks/latency.py --models resnet50 --probes 50 --size 224
"""

import argparse
import copy
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torchvision
from records import Lines, Row, collect
from tables import fixed, markdown, percent, processor, publish
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from trial import randomise

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.deploy import BenchSettings, bench, export_onnx, prepare
from curlfx.deploy.measure import TableSettings, measure_latency
from curlfx.deploy.meet import plan_for_latency
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import plan, slim

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_16")
ROWS = ("curlfx unrounded", "curlfx rounded", "curlfx latency", "Torch-Pruning", "Torch-Pruning round_to=16")
FLOOR = 0.1
STEPS = 9
RECORD = Path(__file__).parent / "results" / "latency.jsonl"


class Case:
    """One network and the narrow ones made from it.

    Args:
        name: Of torchvision.
        arguments: The command line.
    """

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.arguments = name, arguments
        torch.manual_seed(0)
        self.model: nn.Module = randomise(torchvision.models.get_model(name, weights=None), 0).eval()
        self.images = torch.randn(2, 3, arguments.size, arguments.size)
        self.traced: TracedModel = trace(self.model, (self.images,))
        self.coupling: Coupling = couple(self.traced)
        self.costs = CostModel(self.traced, self.coupling)
        self.scores: Scores = score(self.traced, self.coupling, "magnitude")
        self.notes: dict[str, float] = {}

    def files(self, folder: Path) -> Iterator[tuple[str, Path, TracedModel | None]]:
        """Every row: its name, its file, and the network; None where none could be made."""
        yield "dense", self._export(self.traced, folder / "dense.onnx"), self.traced
        makers: dict[str, Callable[[], TracedModel]] = {
            "curlfx unrounded": lambda: self._by_macs(round_to=1),
            "curlfx rounded": lambda: self._by_macs(round_to="auto"),
            "curlfx latency": self._by_latency,
            "Torch-Pruning": lambda: self._by_rival(None),
            "Torch-Pruning round_to=16": lambda: self._by_rival(16),
        }
        for number, row in enumerate(ROWS):
            print(f"{self.name}: {row}", file=sys.stderr, flush=True)
            path = folder / f"{number}.onnx"
            try:
                network = makers[row]()
                yield row, self._export(network, path), network
            except Exception as error:  # a rival may fail in any way, and its row says so
                if row.startswith("curlfx"):
                    raise
                print(f"{self.name}: {row}: {type(error).__name__}: {error}", file=sys.stderr)
                yield row, path, None

    def _by_macs(self, *, round_to: int | Literal["auto"]) -> TracedModel:
        found = plan(
            self.traced,
            self.coupling,
            self.scores,
            {"macs": self.arguments.target},
            round_to=round_to,
            allocation="uniform",
            floor=FLOOR,
            costs=self.costs,
        )
        return slim(self.traced, found, self.coupling)

    def _by_latency(self) -> TracedModel:
        arguments = self.arguments
        settings = TableSettings(threads=arguments.threads, batch_size=arguments.batch_size, probes=arguments.probes)
        table = measure_latency(
            self.traced, self.coupling, settings, cache=arguments.cache, progress=Lines(self.name, 30)
        )
        error = table.prediction_error(self.traced, self.coupling)
        found = plan_for_latency(
            self.traced, self.coupling, self.scores, {"latency_ms": arguments.latency}, table, settings, floor=FLOOR
        )
        self.notes = {
            "error_median": error.median,
            "error_worst": error.worst,
            "networks": error.networks,
            "attempts": len(found.attempts),
            "unexplained": table.model(self.traced, self.coupling).unexplained,
        }
        return slim(self.traced, found.plan, self.coupling)

    def _by_rival(self, round_to: int | None) -> TracedModel:
        """Torch-Pruning with the smallest ratio, the same for all layers, that reaches the target."""
        limit = float(self.arguments.target.rstrip("%")) / 100 * _macs(self.model, self.images[:1])
        low, high, best = 0.0, 1.0 - FLOOR, None
        for _ in range(STEPS):
            ratio = (low + high) / 2
            module = _pruned(self.model, self.images, ratio, round_to)
            if _macs(module, self.images[:1]) <= limit:
                high, best = ratio, module
            else:
                low = ratio
        if best is None:
            raise ValueError(f"no ratio up to {high} reaches {self.arguments.target} of the MACs")
        return trace(best, (self.images,))

    def _export(self, network: TracedModel, path: Path) -> Path:
        ready = prepare(network)
        export_onnx(ready.module, ready.example_inputs, path, dynamic_batch=network.dynamic_batch)
        return path

    def rows(self) -> list[Row]:
        """Everything measured side by side."""
        arguments = self.arguments
        with tempfile.TemporaryDirectory() as folder:
            made = [(name, path, network) for name, path, network in self.files(Path(folder)) if network is not None]
            networks = {name: network for name, _, network in made}
            settings = BenchSettings(
                threads=arguments.threads, batch_size=arguments.batch_size, rounds=arguments.rounds, runs=arguments.runs
            )
            found = bench([path for _, path, _ in made], settings, progress=Lines(f"{self.name}: bench", 30))
        dense, rows = self.costs.dense, []
        for (name, network), entry in zip(networks.items(), found.entries, strict=True):
            cost, speedup = CostModel(network, couple(network)).dense, entry.speedup
            ratio, low, high = (1.0, 1.0, 1.0) if speedup is None else (speedup.ratio, speedup.low, speedup.high)
            rows.append(
                {
                    "row": name,
                    "latency_ms": entry.latency_ms.median,
                    "cov": entry.latency_ms.cov,
                    "macs": dense.macs / cost.macs,
                    "padded": dense.padded_macs / cost.padded_macs,
                    "params": cost.params / dense.params,
                    "speedup": ratio,
                    "low": low,
                    "high": high,
                }
            )
        return rows


def _macs(module: nn.Module, images: Tensor) -> float:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one op for the whole attention, which the counter does not know
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops() / 2)


def _pruned(model: nn.Module, images: Tensor, ratio: float, round_to: int | None) -> nn.Module:
    if not importlib.util.find_spec("torch_pruning"):
        raise SystemExit("rows of Torch-Pruning need it: pip install torch-pruning")
    import torch_pruning

    module = copy.deepcopy(model).eval()
    heads = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1000]
    attention = {layer: layer.num_heads for layer in module.modules() if isinstance(layer, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.BasePruner(
        module,
        images[:1],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=round_to,
        ignored_layers=heads,
        num_heads=attention,
        in_channel_groups={},  # its own default is one dictionary for all pruners of a process
        out_channel_groups={},
    )
    pruner.step()
    with torch.no_grad():
        module(images[:1])
    return module


def table(rows: Sequence[Row]) -> str:
    """One line per network and row."""
    headers = [
        "network",
        "row",
        "latency ms",
        "MACs ratio",
        "padded",
        "params",
        "speed-up",
        "95 % interval",
        "efficiency",
    ]
    body = [
        [
            network["model"],
            row["row"],
            fixed(row["latency_ms"]),
            fixed(row["macs"]),
            fixed(row["padded"]),
            percent(row["params"], 0),
            fixed(row["speedup"]),
            f"{row['low']:.2f} to {row['high']:.2f}",
            fixed(row["speedup"] / row["macs"]),
        ]
        for network in rows
        for row in network["rows"]
    ]
    return markdown(headers, body)


def tables_table(rows: Sequence[Row]) -> str:
    """The latency tables: how well they predict, and how near the plan came."""
    headers = [
        "network",
        "random plans",
        "error median",
        "error worst",
        "unexplained",
        "plans tried",
        "fresh latency of dense",
    ]
    body = []
    for network in rows:
        notes = network["notes"]
        speedup = next(row["speedup"] for row in network["rows"] if row["row"] == "curlfx latency")
        body.append(
            [
                network["model"],
                str(notes["networks"]),
                percent(notes["error_median"]),
                percent(notes["error_worst"]),
                percent(notes["unexplained"]),
                str(notes["attempts"]),
                percent(1 / speedup),
            ]
        )
    return markdown(headers, body)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="pixels per side of an image")
    parser.add_argument("--target", default="50%", help="MACs of the rows that go by MACs")
    parser.add_argument("--latency", default="50%", help="latency of the row that goes by latency")
    parser.add_argument("--probes", type=int, default=24, help="random plans measured for the latency table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder of latency tables (default: the user's cache)")
    parser.add_argument("--record", type=Path, default=RECORD, help="finished rows, one JSON object per line")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    names = ("size", "target", "latency", "probes", "threads", "batch_size", "rounds", "runs")
    settings = {name: getattr(arguments, name) for name in names}

    def measure(wanted: Row) -> Row:
        case = Case(wanted["model"], arguments)
        rows = case.rows()
        return {**wanted, "rows": rows, "notes": case.notes}

    rows = collect(arguments.record, [{"model": name, **settings} for name in arguments.models.split(",")], measure)
    runtime = f"onnxruntime on the CPU, threads {arguments.threads}, batch {arguments.batch_size}"
    place = f"{processor()}, {os.cpu_count()} cores; {runtime}."
    plans = f"Latency tables, and the plan for {arguments.latency} of the latency:"
    text = "\n\n".join([place, table(rows), plans, tables_table(rows)])
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
