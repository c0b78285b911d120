"""Commands of the documentation: taken apart, parsed as the program would, and run in this process."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from curlfx.cli import app
from curlfx.cli.job import split_arguments
from curlfx.run.settings import load_config
from tests.docs.blocks import ROOT, Block

JOBS = ("run", "search", "train")
"""Commands that take settings."""
LAUNCHERS = ("accelerate", "torchrun")
"""Programs that start curlfx in several processes, by ``-m curlfx``."""
OTHERS = ("pip", "pytest", "python3")
"""Programs beside curlfx that a block which is not run may name."""
ELLIPSIS = "…"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
USAGE = typer.BadParameter.__bases__[0]
"""What is raised for wrong usage: click's, which newer versions of typer bring along under another name."""


def commands(block: Block) -> Iterator[tuple[str, str | None]]:
    """Every command of a block, with the output below it; None where the block prints none (``sh``)."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        for line in text.splitlines():
            if shlex.split(line, comments=True):
                yield line, None
        return
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert not parts[0], f"{block.where}: a console block begins with '$ '"
    yield from zip(parts[1::2], parts[2::2], strict=True)


def verbs() -> Any:
    """The program as a group of commands."""
    return typer.main.get_command(app)


def words(command: str) -> list[str]:
    """The words of a command without its comment and without what … stands for."""
    return [word for word in shlex.split(command, comments=True) if word != ELLIPSIS]


def parse(command: str) -> None:
    """What the program itself would say of a command, short of doing it.

    Raises: USAGE, CurlfxError, AssertionError.
    """
    program, *rest = words(command)
    if program in OTHERS:
        check_extras(command)
        return
    if program in LAUNCHERS and "curlfx" in rest:
        program, *rest = rest[rest.index("curlfx") :]
    assert program == "curlfx", f"{command}: want curlfx, or one of {OTHERS}"
    group = verbs()
    context = group.make_context("curlfx", list(rest))
    name, verb, given = group.resolve_command(context, rest)
    parsed = verb.make_context(name, given, parent=context)
    if name in JOBS:
        _, settings = split_arguments(list(parsed.params["job"] or ()))
        load_config(None, settings)


def check_extras(command: str) -> None:
    """Every ``curlfx[extra]`` exists. Raises: AssertionError."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:curlfx|\.)\[([\w,]+)\]", command):
        assert set(named.split(",")) <= set(extras), f"{command}: extras are {', '.join(extras)}"


def run(command: str, status: int = 0) -> str:
    """What a command prints on stdout. Raises: AssertionError for another exit status."""
    program, *rest = words(command)
    assert program == "curlfx", f"{command}: only curlfx is run; say why this is not"
    done = CliRunner().invoke(app, rest)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, f"{command}: exit {done.exit_code}\n{done.stdout}\n{done.stderr}"
    return done.stdout if status == 0 else done.stderr


def agree(wanted: str, found: str, *, numbers: bool = True) -> bool:
    """Whether an output is as a page prints it: … is anything in a line, alone on a line any lines; blanks are one.

    Without ``numbers`` one number is as good as another.
    """
    if not numbers:
        wanted, found = NUMBER.sub("0", wanted), NUMBER.sub("0", found)
    lines = [" ".join(line.split()) for line in wanted.strip().splitlines()]
    patterns = [
        r"(?:.*\n)*?" if line == ELLIPSIS else ".*".join(map(re.escape, line.split(ELLIPSIS))) + r"\n" for line in lines
    ]
    there = "".join(" ".join(line.split()) + "\n" for line in found.strip().splitlines())
    return re.fullmatch("".join(patterns), there) is not None


def inline(page: Path) -> list[str]:
    """Commands of curlfx in the running text, between backticks, with a verb."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"`(curlfx [a-z]+\b[^`]*)`", text)]
