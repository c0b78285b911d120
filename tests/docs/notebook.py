"""A page as an executed Jupyter notebook: ``python -m tests.docs.notebook docs/tutorial.md tutorial.ipynb``.

The notebook is made from the page, so it says the same; it is run here, block by block, and what the blocks print
stands below them. Nothing of Jupyter is needed to make it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.docs.blocks import CODE, Block, blocks
from tests.docs.commands import commands
from tests.docs.execute import execute


def notebook(page: Path, folder: Path) -> dict[str, Any]:
    """The page as a notebook of format 4.5, executed in ``folder``. Raises: as `execute`."""
    found = blocks(page)
    lines = page.read_text(encoding="utf-8").splitlines()
    cells: list[dict[str, Any]] = []
    ran, at = 0, 0
    for block, printed in execute(found, folder, {}):
        _words(cells, lines[at : block.line - 2])
        at = block.line + len(block.text.splitlines())
        if block.language in CODE and block.reason is None and block.mark("file") is None:
            ran += 1
            outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
            cells.append(_cell(cells, "code", _source(block), execution_count=ran, outputs=outputs))
        elif block.mark("file") is not None and block.reason is None:
            ran += 1
            text = f"%%writefile {block.mark('file')}\n{block.text}"
            cells.append(_cell(cells, "code", text, execution_count=ran, outputs=[]))
        else:
            _words(cells, lines[block.line - 2 : at])
        at = _behind_output(found, block, at)
    _words(cells, lines[at:])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


def _behind_output(found: list[Block], block: Block, at: int) -> int:
    """The line behind the output that the page prints below a block, which the notebook has as its own."""
    following = found[found.index(block) + 1 :]
    if following and following[0].mark("output") is not None:
        return following[0].line + len(following[0].text.splitlines())
    return at


def _source(block: Block) -> str:
    if block.language == "python":
        return block.text
    return "".join(f"!{command}\n" for command, _ in commands(block))


def _words(cells: list[dict[str, Any]], lines: list[str]) -> None:
    text = "\n".join(line for line in lines if not line.startswith("<!-- ")).strip()
    if text:
        cells.append(_cell(cells, "markdown", text))


def _cell(cells: list[dict[str, Any]], kind: str, text: str, **more: Any) -> dict[str, Any]:
    return {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": text.rstrip("\n"), **more}


def main(page: str, out: str) -> None:
    """Write the notebook of a page."""
    target = Path(out).resolve()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(page).resolve()
        with contextlib.chdir(folder):
            made = notebook(source, Path(folder))
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
