"""A page is a program: its blocks run in order, in one folder and one namespace."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from curlfx.run.settings import load_config
from tests.docs.blocks import Block
from tests.docs.commands import agree, commands, parse, run


def check(block: Block) -> None:
    """Parse a block that is not run. Raises: SyntaxError, USAGE, CurlfxError, AssertionError, YAMLError."""
    if block.language == "python":
        ast.parse(block.text, block.where)
    elif block.language in ("sh", "console"):
        for command, _ in commands(block):
            for part in command.split(" && "):
                parse(part.replace(".venv/bin/", ""))
    elif block.language == "yaml":
        yaml.safe_load(block.text)


def execute(page: list[Block], folder: Path, namespace: dict[str, Any]) -> Iterator[tuple[Block, str]]:
    """Run what is to be run, in the working directory ``folder``; every block with what it printed.

    Raises: what a block raises; AssertionError for another output or exit status than the page has.
    """
    printed = ""
    for block in page:
        if block.mark("output") is not None:
            if block.mark("output") != "main":
                assert agree(block.text, printed, numbers=_exact(block)), (
                    f"{block.where}: want\n{block.text}\nfound\n{printed}"
                )
            continue
        if block.reason is not None:
            check(block)
            printed = ""
        else:
            printed = _run(block, folder, namespace)
        yield block, printed


def _run(block: Block, folder: Path, namespace: dict[str, Any]) -> str:
    name = block.mark("file")
    if name is not None:
        (folder / name).write_text(block.text, encoding="utf-8")
    if block.language == "yaml":
        assert name is not None, f"{block.where}: a configuration has a name: <!-- file: job.yaml -->"
        load_config(folder / name)
    if block.language == "python" and name is None:
        return _python(block, namespace)
    if block.language in ("sh", "console"):
        return "".join(_command(block, command, wanted) for command, wanted in commands(block))
    return ""


def _exact(block: Block) -> bool:
    return block.mark("numbers") != "any"


def _python(block: Block, namespace: dict[str, Any]) -> str:
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, namespace)  # noqa: S102 — the point of all this
    return out.getvalue()


def _command(block: Block, command: str, wanted: str | None) -> str:
    out = run(command, int(block.mark("exit") or 0))
    if wanted is not None:
        assert agree(wanted, out, numbers=_exact(block)), f"{block.where}: {command}: want\n{wanted}\nfound\n{out}"
    return out
