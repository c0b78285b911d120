"""Commands that check and measure: ``verify`` and ``bench``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curlfx.cli.network import Classes, Frozen, Shape, Weights, open_coupling, open_network
from curlfx.cli.tables import show_table
from curlfx.errors import UsageError
from curlfx.progress import RichProgress

if TYPE_CHECKING:
    from curlfx.deploy import BenchReport
    from curlfx.graph.traced import TracedModel
    from curlfx.run.verify import VerifyReport


def verify(
    subject: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="a run directory or saved network, or MODEL")],
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN]", help="plan.json, with a network")] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file of the slim network, to compare as well")] = None,
    weights: Weights = None,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    seed: Annotated[int, typer.Option(min=0, help="of the random images that a network is compared on")] = 0,
) -> None:
    """Check gated == slim == onnx; exit 1 where it fails.

    The slim network must equal the gated one, and an ONNX file or a saved graph the network it was made from.
    """
    from curlfx.run.recheck import recheck

    if plan is None:
        if not Path(subject).is_dir():
            raise UsageError(
                f"verify {subject}: no such folder; want a run directory or a saved network, or MODEL PLAN"
            )
        found = recheck(Path(subject))
    else:
        network = open_network(subject, weights=weights, shape=shape, classes=classes)
        found = check_plan(network, plan, {"slim": onnx} if onnx is not None else {}, ignore, seed)
    show_checks(found)
    found.require()


def check_plan(
    network: TracedModel, plan: Path, files: Mapping[str, Path], ignore: list[str] | None, seed: int
) -> VerifyReport:
    """Verify a plan, and ONNX files, on random images. Raises: PlanError, ModelError."""
    import torch

    from curlfx.planning import SlimPlan
    from curlfx.run.verify import OTHER_BATCH
    from curlfx.run.verify import verify as compare

    size = network.example_inputs[0].shape[1:]
    images = torch.randn(OTHER_BATCH, *size, generator=torch.Generator().manual_seed(seed))
    coupling = open_coupling(network, ignore) if ignore else None  # else with the names that the plan remembers
    return compare(network, SlimPlan.load(plan), images, coupling=coupling, files=files)


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="A.onnx [B.onnx ...]", help="ONNX files, or a run directory")],
    batch_size: Annotated[int, typer.Option(min=1, help="images per call")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="of one operator")] = 1,
    provider: Annotated[str, typer.Option(help="cpu, cuda, or onnxruntime's own name")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="turns of every file")] = 40,
    runs: Annotated[int, typer.Option(min=1, help="timed calls in a turn")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time ONNX files side by side on onnxruntime."""
    from curlfx.deploy import BenchSettings
    from curlfx.deploy import bench as measure

    settings = BenchSettings(batch_size=batch_size, threads=threads, provider=provider, rounds=rounds, runs=runs)
    with RichProgress() as progress:
        found = measure(with_folders(files), settings, progress=progress)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        show_bench(found)


def with_folders(files: list[Path]) -> list[Path]:
    """The ONNX files, those of a run directory in its place. Raises: UsageError for a folder without any."""
    from curlfx.run.deployment import FILES

    found: list[Path] = []
    for path in files:
        held = [path / name for name in FILES.values() if (path / name).is_file()] if path.is_dir() else [path]
        if not held:
            raise UsageError(
                f"bench {path}: no {' or '.join(FILES.values())} there; write one with curlfx export {path}"
            )
        found += held
    return found


def show_checks(found: VerifyReport) -> None:
    """Every comparison with its bound."""
    rows = [
        (one.name, f"{one.error:.1e}", f"{one.bound:.0e}", "ok" if one.passed else "FAILED") for one in found.checks
    ]
    show_table(("check", "relative error", "bound", ""), rows)


def show_bench(found: BenchReport) -> None:
    """Latencies, and where they were taken."""
    rows = []
    for entry in found.entries:
        times = entry.latency_ms
        numbers = [f"{value:.3f}" for value in (times.median, times.p90, times.p99, times.min, times.mean)]
        ratio = "" if entry.speedup is None else f"{entry.speedup.ratio:.2f}x"
        spread = "" if entry.speedup is None else f"{entry.speedup.low:.2f} to {entry.speedup.high:.2f}"
        rows.append((str(entry.file.path), *numbers, f"{times.cov:.1%}", f"{entry.throughput:.0f}", ratio, spread))
    header = ("file", "median ms", "p90", "p99", "min", "mean", "variation", "images/s", "speed-up", "95 % interval")
    show_table(header, rows)
    place, settings = found.environment, found.settings
    runtime = f"onnxruntime {place['versions']['onnxruntime']}, {settings.provider}, threads {settings.threads}"
    machine = f"{place['cpu']}, {place['cores']} cores ({' '.join(place['cpu_flags'])})"
    print(f"{runtime}, batch {settings.batch_size}, {found.rounds} rounds of {settings.runs}; {machine}")
    for warning in found.warnings:
        print(f"note: {warning}")
