"""The commands and what they share."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import typer

from curlfx import __version__
from curlfx.cli.bench import bench
from curlfx.cli.check import verify
from curlfx.cli.decide import plan, score
from curlfx.cli.job import report, run
from curlfx.cli.look import explain, inspect
from curlfx.cli.make import export, slim
from curlfx.cli.program import Program
from curlfx.cli.quantize import quantize
from curlfx.cli.search import search
from curlfx.cli.train import train
from curlfx.cli.voice import LEVEL

HELP = """Make a trained convolutional network physically narrower, verify it, and measure what it won.

For example:

    curlfx run --preset fast

    curlfx run model=torchvision:resnet18 weights=FILE data=imagefolder:DIR target.macs=50%

    curlfx inspect torchvision:resnet18

    curlfx verify runs/resnet18-1
"""


def show_version(wanted: bool) -> None:
    """Print the version and leave, where ``--version`` is given. Raises: typer.Exit."""
    if wanted:
        print(f"curlfx {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Program,
    name="curlfx",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, train, search, inspect, explain, score, plan, slim, export, quantize, verify, bench, report):
    app.command()(command)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; the same as --log-level debug.")
    ] = False,
    log_level: Annotated[
        Literal["error", "info", "debug"], typer.Option(help="what is said beside the result, on stderr")
    ] = "info",
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    LEVEL.set("debug" if debug else log_level)


def main() -> None:
    """Run the program on the arguments of this process and leave with its exit status."""
    # Threads that wait by spinning take the cores from those that work: beside other programs, small networks trained
    # 20 times slower on 2 threads than on 1. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # lines appear when they are written, also in a pipe
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    app(prog_name="curlfx")
