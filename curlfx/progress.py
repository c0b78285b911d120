"""Progress of long loops (scoring, training, benchmarking): one event per step, shown as a bar or as a few lines.

No torch here: scoring and recovery, which sit far apart, speak the same protocol.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichBars


@dataclass(frozen=True)
class StepEvent:
    """One finished step of a stage.

    Attributes:
        stage: What is running, e.g. ``"train"``, ``"recover"``, ``"score"``.
        epoch: Epoch of this step, from 1; 0 when the stage has no epochs.
        step: Finished steps of the whole stage, from 1 to ``total``.
        total: Steps of the whole stage.
        loss: Running mean of the loss over this epoch; None when the stage has none.
        accuracy: Running accuracy over this epoch, in [0, 1]; None when the stage has none.
        seconds_left: Estimate for the rest of the stage; None before there is one.
    """

    stage: str
    epoch: int
    step: int
    total: int
    loss: float | None = None
    accuracy: float | None = None
    seconds_left: float | None = None


class Progress(Protocol):
    """Whoever wants to see the steps."""

    def on_step(self, event: StepEvent) -> None:
        """Called after every step, in order; an exception raised here stops the stage."""


class StepTimer:
    """Estimates the time left from the steps done so far.

    A resumed stage starts at ``done`` > 0: steps of an earlier process say nothing about the speed of this one.
    """

    def __init__(self, total: int, *, done: int = 0) -> None:
        self._total, self._first, self._started = total, done, time.perf_counter()

    def seconds_left(self, step: int) -> float | None:
        """Estimate after ``step`` finished steps; None while nothing was timed."""
        timed = step - self._first
        if timed <= 0:
            return None
        return (time.perf_counter() - self._started) / timed * (self._total - step)


class RichProgress:
    """Progress on a terminal: one bar per stage with loss, accuracy and time left. A context manager.

    Away from a terminal (a file, a pipe, CI) it prints a line when a stage ends and at most every ``quiet_seconds``
    in between.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet_seconds: float = 30.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet_seconds = quiet_seconds
        self._console = Console(file=self._stream)
        self._bars: RichBars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars off the terminal's control; what they showed stays visible. Safe to call twice."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def on_step(self, event: StepEvent) -> None:
        """Show ``event``."""
        if self._console.is_terminal:
            self._draw(event)
        else:
            self._print(event)

    def _draw(self, event: StepEvent) -> None:
        if self._bars is None:
            state = TextColumn("{task.fields[state]}")
            columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), state)
            self._bars = RichBars(*columns, console=self._console)
            self._bars.start()
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=event.total, state="")
        self._bars.update(self._tasks[event.stage], completed=event.step, total=event.total, state=describe(event))
        if event.step >= event.total:  # the same stage may run again later (several seeds, iterative steps)
            del self._tasks[event.stage]
            if not self._tasks:
                self.close()

    def _print(self, event: StepEvent) -> None:
        now = time.monotonic()
        if event.step < event.total and now - self._printed < self._quiet_seconds:
            return
        self._printed = now
        print(f"{event.stage} {event.step}/{event.total}  {describe(event)}".rstrip(), file=self._stream, flush=True)


def describe(event: StepEvent) -> str:
    """The numbers of ``event`` in one short line, e.g. ``epoch 3  loss 0.412  accuracy 0.871  1:02 left``."""
    parts = []
    if event.epoch:
        parts.append(f"epoch {event.epoch}")
    if event.loss is not None:
        parts.append(f"loss {event.loss:.4g}")
    if event.accuracy is not None:
        parts.append(f"accuracy {event.accuracy:.3f}")
    if event.seconds_left is not None and event.step < event.total:
        parts.append(f"{duration(event.seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """``seconds`` as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
