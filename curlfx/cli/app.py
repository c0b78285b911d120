"""The commands and what they share."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

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

app = typer.Typer(
    cls=Program,
    name="curlfx",
    help="Make a trained convolutional network physically narrower, verify it, and measure what it won.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, train, search, inspect, explain, score, plan, slim, export, quantize, verify, bench, report):
    app.command()(command)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the program on the arguments of this process and leave with its exit status."""
    # Threads that wait by spinning take the cores from those that work: beside other programs, small networks trained
    # 20 times slower on 2 threads than on 1. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # lines appear when they are written, also in a pipe
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    app(prog_name="curlfx")
