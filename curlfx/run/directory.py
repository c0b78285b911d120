"""The run directory: files that appear whole or not at all, one run at a time, and a record of the finished stages."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from curlfx.errors import CheckError, OutputError
from curlfx.files import discard, probe, read_json, unreadable, unwritable, write_bytes
from curlfx.run.results import damage
from curlfx.run.yaml_text import read_yaml_file

STATE = "state.json"
CONFIG = "config.yaml"
SUMMARY = "summary.json"
PAGE = "report.html"
LOG = "log.txt"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
PARTIAL = ".*.partial"
"""What the names of files look like that are being written, see `curlfx.files.written`."""
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

        What a process left that was killed right here counts as empty. Nothing stays behind when this fails.
        Raises: OutputError when ``out`` holds other files or cannot be written, or another process was quicker.
        """
        made, path = _make(out) if out is not None else _next_free(Path("runs"), name)
        directory = cls(path)
        try:
            directory._acquire()
            directory._require_new()
            directory._sweep()
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

        Raises: OutputError when it is no run directory, its record cannot be read, another process runs in it, or a
            link stands where this one would write.
        """
        _require_run(path)
        directory = cls(path)
        try:
            directory._require_no_links()
            directory._acquire()
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            directory.done, directory.seconds = _read_state(path / STATE)
            settings = _read_config(path / CONFIG)
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
        """Note that ``stage`` is finished, with its JSON ``result`` and wall-clock ``seconds``.

        Raises: OutputError; CheckError for a result that holds NaN or infinity.
        """
        try:
            json.dumps(result, allow_nan=False)
        except ValueError as error:
            raise CheckError(f"{self.path}: stage '{stage}' ended with a number that is not finite: {error}") from error
        self.done[stage] = dict(result)
        self.seconds[stage] = seconds
        self._save()

    def log(self, line: str) -> None:
        """Append one line to ``log.txt``, with the time. Raises: OutputError."""
        time = datetime.now(tz=UTC).astimezone().isoformat(sep=" ", timespec="seconds")
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as stream:
                stream.write(f"{time}  {line}\n")
        except OSError as error:
            raise unwritable(self.path / LOG, error) from error

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
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise _in_use(self.path) from error
        self._lock = lock
        self.checkpoints.mkdir(exist_ok=True)

    def _require_no_links(self) -> None:
        """Refuse links in place of what is written to as it stands: it would go to wherever they lead."""
        places = (self.path / LOCK, self.path / LOG, self.checkpoints, *self.checkpoints.glob("*"))
        link = next((place for place in places if place.is_symlink()), None)
        if link is not None:
            raise OutputError(f"{link}: a link, which is not followed; put what it leads to in its place")

    def _require_new(self) -> None:
        """Refuse a folder in which another process made a run since it was found empty."""
        if (self.path / STATE).exists():
            self.close()
            raise OutputError(f"{self.path}: another run was made here meanwhile; name another folder")

    def _save(self) -> None:
        write_json(self.path / STATE, {"format": FORMAT, "done": self.done, "seconds": self.seconds})

    def _sweep(self) -> None:
        """Remove temporary files that a killed process left."""
        for path in self.path.rglob(PARTIAL):
            discard(path)

    def _withdraw(self, made: list[Path]) -> None:
        """Undo ``create``: our files, unless another run holds the folder, then the folders we made, if empty."""
        ours = self._lock is not None
        self.close()
        for name in (CONFIG, STATE, LOCK) if ours else ():
            discard(self.path / name)
        for folder in (self.checkpoints, *made) if ours else made:
            try:
                folder.rmdir()
            except OSError:
                return


@contextmanager
def looked_at(path: Path) -> Iterator[tuple[RunDirectory, dict[str, Any]]]:
    """The folder of an earlier run as `RunDirectory.reopen` gives it, for reading: it may be on a read-only disk.

    Nothing is written; no run goes on here meanwhile, others may look.
    Raises: OutputError when it is no run directory, its record cannot be read, or another process runs in it.
    """
    _require_run(path)
    with _shared(path):
        directory = RunDirectory(path, *_read_state(path / STATE))
        yield directory, _read_config(path / CONFIG)


@contextmanager
def _shared(folder: Path) -> Iterator[None]:
    """Keep runs away from a folder that was locked before; without its lock file none is working there."""
    lock = folder / LOCK
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise unreadable(lock, error) from error
    try:
        with suppress(OSError):  # a disk that knows no locks: no run has one there
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _in_use(folder) from error
        yield
    finally:
        os.close(handle)


def _require_run(path: Path) -> None:
    if not ((path / STATE).is_file() and (path / CONFIG).is_file()):
        raise OutputError(f"resume={path}: want a run directory (with {CONFIG} and {STATE}); found none there")


def _in_use(path: Path) -> OutputError:
    return OutputError(f"{path}: another run is working here; wait for it to end")


def _read_state(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Results and seconds of the finished stages. Raises: OutputError naming the file and what is wrong with it."""
    try:
        record = read_json(path)
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
        if type(seconds.get(stage)) not in (int, float) or not math.isfinite(seconds[stage]):
            return f"seconds['{stage}']: want a number, found {seconds.get(stage)!r}"
    return damage(done)


def _read_config(path: Path) -> dict[str, Any]:
    """The settings of a run. Raises: OutputError naming the file and what is wrong with it."""
    try:
        settings = read_yaml_file(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(settings, dict):
        raise _unreadable(path, f"{CONFIG} holds {type(settings).__name__}, want keys with values")
    return settings


def _unreadable(path: Path, fault: object) -> OutputError:
    line = " ".join(str(fault).split())  # a YAML error has several
    return OutputError(f"{path}: cannot read its record ({line}); restore the file, or start a new run")


def planned_path(out: Path | None, name: str) -> Path:
    """The folder that `RunDirectory.create` would make; nothing is made. Raises: OutputError for one that is in use."""
    parent = Path("runs")
    try:
        if out is None:
            return parent / f"{name}-{_free_number(parent, name)}"
        _require_free(out)
    except OSError as error:
        raise unwritable(out or parent, error) from error
    return out


def _require_free(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not _only_begun(out):
        hint = f", or continue it with resume={out}" if (out / STATE).is_file() else ""
        raise OutputError(f"out={out}: the folder is not empty; name another one{hint}")


def _free_number(parent: Path, name: str) -> int:
    """The lowest number above all that exist."""
    taken = [int(tail) for path in parent.glob(f"{name}-*") if (tail := path.name[len(name) + 1 :]).isdecimal()]
    return max(taken, default=0) + 1


def _make(out: Path) -> tuple[list[Path], Path]:
    """Make ``out`` and its parents; return the folders that were really made, innermost first."""
    try:
        _require_free(out)
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        _try(out, missing)
    except OSError as error:
        raise unwritable(out, error) from error
    return missing, out


def _only_begun(folder: Path) -> bool:
    """Whether a process was killed while it made a run directory of ``folder``, and left nothing else in it."""
    names = {path.name for path in folder.iterdir()}
    ours = {name for name in names if name in (LOCK, CONFIG, CHECKPOINTS) or fnmatch.fnmatch(name, PARTIAL)}
    return LOCK in names and names == ours and not any((folder / CHECKPOINTS).glob("*"))


def _try(folder: Path, made: list[Path]) -> None:
    """Find a folder that exists but cannot be written before any work; then the folders we made go again."""
    try:
        probe(folder)
    except OSError:
        for path in made:
            path.rmdir()
        raise


def _next_free(parent: Path, name: str) -> tuple[list[Path], Path]:
    """Make ``parent/name-<number>`` with the lowest number above all that exist (two processes never get the same)."""
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = _free_number(parent, name)
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
