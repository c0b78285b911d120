"""The run directory: files that appear whole or not at all, one run at a time, and a record of the finished stages."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from curlfx.errors import OutputError
from curlfx.files import discard, unwritable, write_bytes

STATE = "state.json"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
FORMAT = 2
STAGES = (
    "train",
    "dense",
    "trace",
    "couple",
    "score",
    "plan",
    "slim",
    "unrecovered",
    "recalibrate",
    "overparam",
    "recover",
    "refine",
    "accuracy",
    "export",
    "verify",
    "bench",
    "report",
)
"""Names of the stages, in the order in which they run and are recorded."""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all. Raises: OutputError."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, whole or not at all. Raises: OutputError; ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@dataclass
class RunDirectory:
    """One run's folder, locked for this process from creation to ``close``.

    Attributes:
        path: The folder.
        done: Result of every finished stage, by stage name (JSON values).
        seconds: Wall-clock seconds of every finished stage, by stage name.
    """

    path: Path
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _lock: FileLock | None = field(default=None, repr=False)

    @classmethod
    def create(cls, out: Path | None, name: str, config: Mapping[str, Any]) -> RunDirectory:
        """Make the folder (``out``, or the next free ``runs/<name>-<number>``) and write ``config.yaml`` into it.

        Nothing stays behind when this fails. Raises: OutputError when ``out`` holds files or cannot be written.
        """
        made, path = _make(out) if out is not None else _next_free(Path("runs"), name)
        directory = cls(path)
        try:
            directory._acquire()
            write_text(path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
            directory._save()
        except OSError as error:
            directory._withdraw(made)
            raise unwritable(path, error) from error
        except OutputError:
            directory._withdraw(made)
            raise
        return directory

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunDirectory, dict[str, Any]]:
        """Lock the folder of an earlier run; return it with its stage record, and its configuration.

        Raises: OutputError when it is no run directory, its record cannot be read, or another process runs in it.
        """
        state, config = path / STATE, path / CONFIG
        if not (state.is_file() and config.is_file()):
            raise OutputError(f"resume={path}: want a run directory (with {CONFIG} and {STATE}); found none there")
        directory = cls(path)
        try:
            directory._acquire()
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            directory.done, directory.seconds = _read_state(state)
            settings = _read_config(config)
        except OutputError:
            directory.close()
            raise
        directory._sweep()
        return directory, settings

    @property
    def checkpoints(self) -> Path:
        """Folder of intermediate files (trained weights, scores, epochs of an unfinished training)."""
        return self.path / CHECKPOINTS

    def record(self, stage: str, result: Mapping[str, Any], seconds: float) -> None:
        """Note that ``stage`` is finished, with its JSON ``result`` and wall-clock ``seconds``. Raises: OutputError."""
        self.done[stage] = dict(result)
        self.seconds[stage] = seconds
        self._save()

    def log(self, line: str) -> None:
        """Append one line to ``log.txt``, with the time. Raises: OutputError."""
        time = datetime.now(tz=UTC).astimezone().isoformat(sep=" ", timespec="seconds")
        try:
            with (self.path / "log.txt").open("a") as stream:
                stream.write(f"{time}  {line}\n")
        except OSError as error:
            raise unwritable(self.path / "log.txt", error) from error

    def close(self) -> None:
        """Let other processes use the folder; what is in it stays."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self) -> None:
        self.checkpoints.mkdir(exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(f"{self.path}: another run is working here; wait for it to end") from error
        self._lock = lock

    def _save(self) -> None:
        write_json(self.path / STATE, {"format": FORMAT, "done": self.done, "seconds": self.seconds})

    def _sweep(self) -> None:
        """Remove temporary files that a killed process left."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(".*.partial"):
                discard(path)

    def _withdraw(self, made: list[Path]) -> None:
        """Undo ``create``: our files, then the folders we made, as far as they are empty."""
        self.close()
        for name in (CONFIG, STATE, ".lock"):
            discard(self.path / name)
        for folder in (self.checkpoints, *made):
            try:
                folder.rmdir()
            except OSError:
                return


def _read_state(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Results and seconds of the finished stages. Raises: OutputError naming the file and what is wrong with it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    fault = _fault(record)
    if fault is not None:
        raise _unreadable(path, fault)
    return record["done"], record["seconds"]


def _fault(record: Any) -> str | None:
    """What keeps ``record`` from being the record of a run; None: nothing."""
    if not isinstance(record, dict):
        return f"it holds a {type(record).__name__}, want keys with values"
    if record.get("format") != FORMAT:
        return f"format {record.get('format')}, this version reads {FORMAT}"
    for key in ("done", "seconds"):
        if not isinstance(record.get(key), dict):
            return f"'{key}': want stages with values, found {record.get(key)!r}"
    done, seconds = record["done"], record["seconds"]
    unknown = next((stage for stage in (*done, *seconds) if stage not in STAGES), None)
    if unknown is not None:
        return f"'{unknown}' is no stage"
    for stage, before in zip(STAGES[1:], STAGES, strict=False):
        if stage in done and before not in done:
            return f"'done' has stage '{stage}' without '{before}', which comes before it"
    for stage, result in done.items():
        if not isinstance(result, dict):
            return f"done['{stage}']: want keys with values, found {result!r}"
        if type(seconds.get(stage)) not in (int, float):
            return f"seconds['{stage}']: want a number, found {seconds.get(stage)!r}"
    return None


def _read_config(path: Path) -> dict[str, Any]:
    """The settings of a run. Raises: OutputError naming the file and what is wrong with it."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(settings, dict):
        raise _unreadable(path, f"{CONFIG} holds {type(settings).__name__}, want keys with values")
    return settings


def _unreadable(path: Path, fault: object) -> OutputError:
    line = " ".join(str(fault).split())  # a YAML error has several
    return OutputError(f"{path}: cannot read its record ({line}); restore the file, or start a new run")


def _make(out: Path) -> tuple[list[Path], Path]:
    """Make ``out`` and its parents; return the folders that were really made, innermost first."""
    try:
        if out.is_dir() and any(out.iterdir()):
            hint = f", or continue it with resume={out}" if (out / STATE).is_file() else ""
            raise OutputError(f"out={out}: the folder is not empty; name another one{hint}")
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        _probe(out, missing)
    except OSError as error:
        raise unwritable(out, error) from error
    return missing, out


def _probe(folder: Path, made: list[Path]) -> None:
    """Try a small file, so that a folder that exists but cannot be written is found before any work."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"curlfx")
    except OSError:
        for path in made:
            path.rmdir()
        raise


def _next_free(parent: Path, name: str) -> tuple[list[Path], Path]:
    """Make ``parent/name-<number>`` with the lowest number above all that exist (two processes never get the same)."""
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(tail) for path in parent.glob(f"{name}-*") if (tail := path.name[len(name) + 1 :]).isdigit()]
        number = max(taken, default=0) + 1
        while True:
            path = parent / f"{name}-{number}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return [path, *made], path
    except OSError as error:
        raise unwritable(parent, error) from error
