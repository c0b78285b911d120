"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curlfx.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed, on failure it is removed.

    Raises: OutputError when the folder cannot be written or the disk is full (the ``OSError`` is chained), or when
    ``path`` is a folder or a device.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # to rename onto a device would replace it
            raise OutputError(f"cannot write {path}: it is a folder or a device; name a file")
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        discard(temporary)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises: OutputError."""
    with written(path) as temporary:
        temporary.write_bytes(data)


def unwritable(path: Path, error: OSError) -> OutputError:
    """The one error for a folder that cannot be written, a full disk and their like; names the path and the cause."""
    reason = error.strerror or str(error)
    remedy = "free some space there or name another folder" if error.errno in FULL else "name another folder"
    return OutputError(f"cannot write {path}: {reason}; {remedy}")


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself went away or became read-only: nothing is left to tidy
        return
