"""How much a command says beside its result: everything on stderr goes through here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from curlfx.progress import Progress, RichProgress

Level = Literal["error", "info", "debug"]
LEVEL: ContextVar[Level] = ContextVar("level", default="info")
"""``error``: errors alone; ``info``: notes and progress too; ``debug``: also the traceback of an error."""


def say(line: str) -> None:
    """Say something beside the result, unless only errors are wanted."""
    if LEVEL.get() != "error":
        print(line, file=sys.stderr)


@contextmanager
def progress_shown() -> Iterator[tuple[Progress | None, Callable[[str], None]]]:
    """Progress on the terminal, and what takes lines of text beside its bars; neither where only errors are wanted."""
    if LEVEL.get() == "error":
        yield None, lambda _: None
        return
    with RichProgress() as progress:

        def beside(line: str) -> None:
            progress.close()
            say(line)

        yield progress, beside
