"""A job that kills its own process, for tests: nothing after the kill runs, not even a ``finally``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from curlfx.progress import StepEvent
from curlfx.run.runner import run

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")


class Clock:
    """Counts what can be told apart from outside: the steps of stages, and what is done to files of the run directory.

    Just before the event number ``moment`` the process is killed, as ``kill -9`` does it.
    """

    def __init__(self, out: str, moment: int) -> None:
        self._out, self._left = out, moment
        sys.addaudithook(self._on_audit)

    def on_step(self, event: StepEvent) -> None:
        self._tick()

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and any(isinstance(one, str | Path) and self._out in str(one) for one in arguments):
            self._tick()

    def _tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(settings: dict[str, Any], out: str, moment: int) -> None:
    """Start the job, or go on with it; only a job that is done before the ``moment`` comes back."""
    begun = (Path(out) / "state.json").exists()
    run({"resume": out} if begun else {**settings, "threads": 1, "out": out}, progress=Clock(out, moment))
