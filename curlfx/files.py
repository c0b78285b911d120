"""Files that appear whole or not at all, and texts that are read only as far as they are of a sensible size."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from curlfx.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_TEXT = 64 * 2**20
"""Bytes of the largest text that is read: plans, scores, records."""


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed, on failure it is removed.

    Raises: OutputError when the folder cannot be written or the disk is full (the ``OSError`` is chained), or when
    ``path`` is a folder or a device.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _require_plain(path)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        discard(temporary)


def sha256(content: bytes | BufferedReader) -> str:
    """SHA-256 of bytes, or of the rest of an open file, in hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return hashlib.file_digest(content, "sha256").hexdigest()


def require_writable(path: Path) -> None:
    """Refuse a file that `written` could not put in place, before the work that would fill it. Nothing is left behind.

    Raises: OutputError, as `written`.
    """
    try:
        _require_plain(path)
        probe(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def probe(folder: Path) -> None:
    """Write a small file that has no name, into a folder that exists. Raises: OSError."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"curlfx")


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises: OutputError."""
    with written(path) as temporary:
        temporary.write_bytes(data)


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """UTF-8 text of a file of at most ``most`` bytes; no more is read. Raises: OSError; UnicodeDecodeError."""
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most / 2**20:g} MiB", str(path))
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises: OSError; ValueError for no JSON (as NaN is none), too large or too deep."""
    try:
        return json.loads(read_text(path), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def unwritable(path: Path, error: OSError) -> OutputError:
    """The one error for a folder that cannot be written, a full disk and their like; names the path and the cause."""
    reason = error.strerror or str(error)
    remedy = "free some space there or name another folder" if error.errno in FULL else "name another folder"
    return OutputError(f"cannot write {path}: {reason}; {remedy}")


def unreadable(path: Path, error: OSError) -> OutputError:
    """The error for a file of a run that is there and cannot be read; names the path and the cause."""
    return OutputError(f"cannot read {path}: {error.strerror or error}; restore it, or start a new run")


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself went away or became read-only: nothing is left to tidy
        return


def _require_plain(path: Path) -> None:
    """Refuse what is there and no file: to rename onto a device would replace it. Raises: OutputError; OSError."""
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is a folder or a device; name a file")


def _flush_folder(folder: Path) -> None:
    """Flush the new name to disk too, where the file system can; the file itself is there already."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
