"""Rows on record: what a program has measured before is not measured again, and an interrupted one goes on."""

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from curlfx.files import discard
from curlfx.progress import StepEvent

__all__ = ["Lines", "Row", "called", "checkpoint", "collect", "find", "forget", "spread"]

Row = dict[str, Any]


class Lines:
    """Progress as a line on standard error every few seconds."""

    def __init__(self, arm: str, every: float = 10.0) -> None:
        self.arm, self.every, self.last = arm, every, 0.0

    def on_step(self, event: StepEvent) -> None:
        """Print the step when the last print is long enough ago."""
        now = time.monotonic()
        if now - self.last < self.every and event.step != event.total:
            return
        self.last = now
        loss = "" if event.loss is None else f", loss {event.loss:.3f}"
        left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
        print(f"{self.arm}: {event.stage} {event.step}/{event.total}{loss}{left}", file=sys.stderr, flush=True)


def collect(
    path: Path,
    wanted: Iterable[Row],
    measure: Callable[[Row], Row | None],
    recorded: Callable[[Row], None] = lambda _: None,
) -> list[Row]:
    """The rows that are asked for, read from the record or measured and put there, one JSON object per line.

    Args:
        path: The record.
        wanted: For every row the settings that it was measured with.
        measure: The row for such settings; None where there is nothing to measure.
        recorded: Told the settings of every row that is on record.
    """
    record, rows = _read(path), []
    for settings in wanted:
        row = _match(record, settings)
        if row is None:
            row = measure(settings)
            if row is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        recorded(settings)
        rows.append(row)
    return rows


def find(path: Path, settings: Row) -> Row | None:
    """The row on record that was measured with such settings; None where there is none."""
    return _match(_read(path), settings)


def checkpoint(record: Path, row: Row) -> Path:
    """Where the unfinished training of a row is kept, by the settings of the row."""
    name = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
    return record.with_suffix(".work") / f"{name}.pt"


def forget(path: Path) -> None:
    """Remove the checkpoints of a row that is on record now."""
    for file in path.parent.glob(f"{path.stem}*"):
        discard(file)


def called(place: str | None) -> str | None:
    """What a file or a folder is called, wherever it lies; for the settings of a row."""
    return None if place is None else Path(place).name


def spread(values: Sequence[float]) -> str:
    """Mean of some accuracies in percent, and half their range; empty where there are none."""
    if not values:
        return ""
    half = (max(values) - min(values)) / 2
    return f"{100 * statistics.mean(values):.2f} ± {100 * half:.2f}"


def _match(record: Sequence[Row], settings: Row) -> Row | None:
    return next((row for row in record if settings.items() <= row.items()), None)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
