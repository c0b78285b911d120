"""The fenced blocks of a page, and what the comments right before them say about them.

<!-- not run: REASON -->   not executed, only parsed; one of `REASONS`, or ``tested in PATH``
<!-- output -->            what the block before prints; … stands for anything, on a line of its own for any lines
<!-- numbers: any -->      in what it prints one number is as good as another
<!-- file: NAME -->        is written to that file
<!-- exit: 2 -->           the command ends with that status
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REASONS = (
    "downloads weights",
    "for another program",
    "needs a GPU",
    "needs a cluster",
    "needs an optional package",
    "needs your own files",
    "takes minutes",
)
"""Why a block may go without being run."""
LANGUAGES = ("console", "json", "python", "sh", "text", "toml", "yaml")
CODE = ("console", "python", "sh")
FENCE = re.compile(r"```(\w*)$")
COMMENT = re.compile(r"<!-- (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: The file.
        line: Number of its first line, from 1.
        language: What follows the fence.
        text: What it holds.
        marks: The comments right before it, first one first.
    """

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    @property
    def where(self) -> str:
        """For messages: ``docs/run.md:12``."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def mark(self, name: str) -> str | None:
        """What follows ``name:`` in a comment, ``""`` for the bare name, None without it."""
        for mark in self.marks:
            key, _, value = mark.partition(":")
            if key.strip() == name:
                return value.strip()
        return None

    @property
    def reason(self) -> str | None:
        """Why it is not run; None for a block that is."""
        if self.mark("command") is not None:  # the two lines of README.md
            return "tested in .ci/run"
        return self.mark("not run")


def pages() -> list[Path]:
    """README.md and everything in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order. Raises: ValueError for a fence that is not closed."""
    found: list[Block] = []
    marks: list[str] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence, comment = FENCE.match(line), COMMENT.match(line)
        if opened is not None and line == "```":
            found.append(Block(page, *opened, "".join(f"{each}\n" for each in lines), tuple(marks)))
            opened, lines, marks = None, [], []
        elif opened is not None:
            lines.append(line)
        elif fence is not None:
            opened = (number + 1, fence[1])
        else:
            marks = [*marks, comment[1]] if comment is not None else []
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: the block is not closed")
    return found
