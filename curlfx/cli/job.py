"""Commands about whole jobs: ``run`` and ``report``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curlfx.cli.tables import show_table
from curlfx.errors import ConfigError
from curlfx.progress import RichProgress
from curlfx.report.text import headline, in_eight_bits, verdict

JOB_HELP = "a YAML file, and settings like target.macs=40% that stand above it"

if TYPE_CHECKING:
    from curlfx.run.config import RunConfig


def run(
    job: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [key=value ...]", help=JOB_HELP)] = None,
) -> None:
    """Do the whole job, from a network to a verified report.

    Train or load, score, plan, slim, verify, recover, export, measure. Without arguments: scikit-learn's digits, a
    small residual network, half of the MACs.
    """
    from curlfx.run.settings import load_config

    file, overrides = split_arguments(job or [])
    run_and_show(load_config(file, overrides))  # bad settings are told before torch's slow import


def run_and_show(config: RunConfig) -> None:
    """Do a job with its progress on the terminal, and show its figures."""
    from curlfx.run.runner import run as run_job

    with RichProgress() as progress:
        result = run_job(config, progress=progress, say=lambda line: progress_line(progress, line))
    if result.leads:
        show_summary(result.directory, result.summary)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run directory")],
) -> None:
    """Show a finished run and draw its report.html again."""
    from curlfx.run.directory import RunDirectory
    from curlfx.run.reporting import read_summary, write_page

    directory, _ = RunDirectory.reopen(folder)
    with directory:
        summary = read_summary(folder)
        write_page(directory)
    show_summary(folder, summary)


def split_arguments(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The configuration file, if one is named, and the overrides. Raises: ConfigError for a second file."""
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(
            f"{files[1]!r}: want key=value, like target.macs=50%; {files[0]} is the configuration already"
        )
    return (Path(files[0]) if files else None), [argument for argument in arguments if "=" in argument]


def progress_line(progress: RichProgress, line: str) -> None:
    """Print a line beside the bars of ``progress``."""
    progress.close()
    print(line, file=sys.stderr)


def show_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """The figures of a run as a table."""
    show_table(("", "dense", "slim", "change"), headline(summary))
    print(f"speed-up       {summary['speedup']:.2f}x")
    print(f"verification   {verdict(summary)}")
    quantised = in_eight_bits(summary)
    if quantised is not None:
        print(f"in 8 bits      {quantised}")
    print(f"run directory  {folder}  (open {folder / 'report.html'})")
