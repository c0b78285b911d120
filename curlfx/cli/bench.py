"""The command ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curlfx.cli.document import print_json
from curlfx.cli.job import AsJson
from curlfx.cli.tables import show_table
from curlfx.cli.voice import progress_shown
from curlfx.errors import UsageError

if TYPE_CHECKING:
    from curlfx.deploy import BenchEntry, BenchReport, Breakdown


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="A.onnx [B.onnx ...]", help="ONNX files, or a run directory")],
    batch_size: Annotated[int, typer.Option(min=1, help="images per call")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="of one operator")] = 1,
    provider: Annotated[str, typer.Option(help="cpu, cuda, or onnxruntime's own name")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="turns of every file")] = 40,
    runs: Annotated[int, typer.Option(min=1, help="timed calls in a turn")] = 5,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of every file goes.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Measure the peak memory of every file.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the latencies into this .svg, .png or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time ONNX files side by side on onnxruntime.

    For example:

        curlfx bench dense.onnx slim.onnx --threads 2

        curlfx bench runs/resnet18-1 --profile
    """
    from curlfx.deploy import BenchSettings
    from curlfx.deploy import bench as measure
    from curlfx.deploy.plot import check_plot, plot_bench

    if plot is not None:
        check_plot(plot)
    settings = BenchSettings(
        batch_size=batch_size,
        threads=threads,
        provider=provider,
        rounds=rounds,
        runs=runs,
        profile=profile,
        memory=memory,
    )
    with progress_shown() as (progress, _):
        found = measure(with_folders(files), settings, progress=progress)
    if plot is not None:
        plot_bench(found, plot)
    if as_json:
        print_json(found.to_json())
    else:
        show_bench(found)


def with_folders(files: list[Path]) -> list[Path]:
    """The ONNX files, those of a run directory in its place. Raises: UsageError for a folder without any."""
    from curlfx.run.deployment import ONNX_FILES
    from curlfx.run.int8 import INT8

    found: list[Path] = []
    for path in files:
        held = (
            [path / name for name in (*ONNX_FILES.values(), INT8) if (path / name).is_file()]
            if path.is_dir()
            else [path]
        )
        if not held:
            raise UsageError(
                f"bench {path}: no {' or '.join(ONNX_FILES.values())} there; write one with curlfx export {path}"
            )
        found += held
    return found


def show_bench(found: BenchReport) -> None:
    """Latencies, where the time goes, and where all that was measured."""
    header = ["file", "median ms", "p90", "p99", "min", "mean", "variation", "images/s", "speed-up", "95 % interval"]
    show_table([*header, *(["memory MiB"] if found.settings.memory else [])], [_row(entry) for entry in found.entries])
    for entry in found.entries:
        if entry.profile is not None:
            _show_profile(entry.file.path, entry.profile)
    place, settings = found.environment, found.settings
    runtime = f"onnxruntime {place['versions']['onnxruntime']}, {settings.provider}, threads {settings.threads}"
    machine = f"{place['cpu']}, {place['cores']} cores ({' '.join(place['cpu_flags'])})"
    print(f"{runtime}, batch {settings.batch_size}, {found.rounds} rounds of {settings.runs}; {machine}")
    for warning in found.warnings:
        print(f"note: {warning}")


def _row(entry: BenchEntry) -> Sequence[str]:
    times, speedup = entry.latency_ms, entry.speedup
    numbers = [f"{value:.3f}" for value in (times.median, times.p90, times.p99, times.min, times.mean)]
    ratio = "" if speedup is None else f"{speedup.ratio:.2f}x"
    spread = "" if speedup is None else f"{speedup.low:.2f} to {speedup.high:.2f}"
    memory = [] if entry.memory_mib is None else [f"{entry.memory_mib:.1f}"]
    return [str(entry.file.path), *numbers, f"{times.cov:.1%}", f"{entry.throughput:.0f}", ratio, spread, *memory]


def _show_profile(path: Path, found: Breakdown) -> None:
    reorders = ", ".join(f"{count} {kind}" for kind, count in found.reorders.items())
    slow = f"{len(found.slow)} of {found.convolutions} convolutions off the fast path; {reorders}"
    rows = [(one.op_type, f"{one.milliseconds:.3f}", f"{one.share:.1%}", str(one.nodes)) for one in found.operators]
    show_table(("operator", "ms", "share", "nodes"), rows, title=f"{path}: {slow}")
