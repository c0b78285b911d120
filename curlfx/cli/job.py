"""Commands about whole jobs: ``run`` and ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curlfx.cli.document import print_json
from curlfx.cli.forecast import show_forecast
from curlfx.cli.tables import show_table
from curlfx.cli.voice import progress_shown
from curlfx.errors import ConfigError
from curlfx.report.text import headline, in_eight_bits, verdict

if TYPE_CHECKING:
    from curlfx.run.config import RunConfig
    from curlfx.run.runner import RunResult

JOB_HELP = "a YAML file, and settings like target.macs=40% that stand above it"
Settings = Annotated[list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [key=value ...]", help=JOB_HELP)]
Preset = Annotated[
    Literal["fast", "default", "thorough"] | None, typer.Option(help="where settings that are not given come from")
]
Explained = Annotated[
    bool, typer.Option("--explain", help="Say what would be done, and estimate the time; do and write nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(job: Settings = None, preset: Preset = None, explain: Explained = False, as_json: AsJson = False) -> None:
    """Do the whole job, from a network to a verified report.

    Train or load, score, plan, slim, verify, recover, export, measure. Without arguments: scikit-learn's digits, a
    small residual network, half of the MACs.

    For example:

        curlfx run --preset fast

        curlfx run model=torchvision:resnet18 weights=FILE data=imagefolder:DIR target.macs=50%

        curlfx run job.yaml target.latency_ms=60% --explain

        curlfx run resume=runs/resnet18-1
    """
    from curlfx.run.settings import load_config

    file, overrides = split_arguments(job or [], preset)
    do_job(load_config(file, overrides), explain=explain, as_json=as_json)


def do_job(config: RunConfig, *, explain: bool = False, as_json: bool = False) -> None:
    """Do a job with its progress on the terminal and show its figures, or say what it would do."""
    if explain:
        if config.resume is not None:
            raise ConfigError(
                f"--explain: resume={config.resume} goes on with a run; its config.yaml says what it does"
            )
        show_forecast(config, as_json=as_json)
        return
    result = finish(config)
    show_result(result, as_json=as_json)


def finish(config: RunConfig) -> RunResult:
    """Do a job with its progress on the terminal."""
    from curlfx.run.runner import run as run_job

    with progress_shown() as (progress, say):
        return run_job(config, progress=progress, say=say)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run directory")],
    as_json: AsJson = False,
) -> None:
    """Show a finished run and draw its report.html again.

    For example:

        curlfx report runs/resnet18-1
    """
    from curlfx.run.directory import RunDirectory
    from curlfx.run.reporting import read_summary, write_page
    from curlfx.run.runner import RunResult

    directory, _ = RunDirectory.reopen(folder)
    with directory:
        summary = read_summary(folder)
        write_page(directory)
    show_result(RunResult(folder, summary), as_json=as_json)


def split_arguments(arguments: list[str], preset: str | None = None) -> tuple[Path | None, list[str]]:
    """The configuration file, if one is named, and the overrides. Raises: ConfigError for a second file."""
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(
            f"{files[1]!r}: want key=value, like target.macs=50%; {files[0]} is the configuration already"
        )
    overrides = [argument for argument in arguments if "=" in argument]
    return (Path(files[0]) if files else None), [*([f"preset={preset}"] if preset is not None else []), *overrides]


def show_result(result: RunResult, *, as_json: bool = False) -> None:
    """The figures of a run as a table, or the whole summary as JSON; of several processes the first one shows them."""
    if not result.leads:
        return
    if as_json:
        print_json({**result.summary, "directory": str(result.directory)})
    else:
        show_summary(result.directory, result.summary)


def show_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """The figures of a run as a table."""
    show_table(("", "dense", "slim", "change"), headline(summary))
    print(f"speed-up       {summary['speedup']:.2f}x")
    print(f"verification   {verdict(summary)}")
    quantised = in_eight_bits(summary)
    if quantised is not None:
        print(f"in 8 bits      {quantised}")
    print(f"run directory  {folder}  (open {folder / 'report.html'})")
