"""Checksums of the files of a run: kept in ``summary.json``, and compared with what is there by ``curlfx verify``."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from curlfx.errors import CheckError
from curlfx.files import sha256, unreadable
from curlfx.run.directory import LOCK, LOG, PAGE, PARTIAL, STATE, SUMMARY

UNRECORDED = (LOCK, LOG, PAGE, STATE, SUMMARY)
"""Files without a checksum: the summary itself, what is written after it, and what is drawn from it."""
NO_PLAIN_FILE = "no plain file"
"""Stands for the checksum of a link or a device, which is never opened and never as it was."""


@dataclass(frozen=True)
class FileReport:
    """What became of the files of a run.

    Attributes:
        folder: The run directory.
        same: How many are as they were written.
        missing: Those that are gone, by their path in the folder.
        changed: Those that hold something else.
        extra: Those that the run did not write.
    """

    folder: Path
    same: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every file is as it was written, and there is no other."""
        return not (self.missing or self.changed or self.extra)

    def require(self) -> None:
        """Insist. Raises: CheckError naming every file."""
        if not self.passed:
            parts = {"missing": self.missing, "changed": self.changed, "extra": self.extra}
            found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in parts.items() if names)
            raise CheckError(f"{self.folder} is not what its run left: {found}; restore the files, or start a new run")


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in ``folder`` and below, by its path in it, but for `UNRECORDED`. Raises: OutputError.

    What a killed process left half written is no file of the run; the next process that writes there removes it.
    """
    return {name: _checksum(folder / name) for name in sorted(_names(folder)) if not _unrecorded(name)}


def compare(folder: Path, recorded: Mapping[str, str]) -> FileReport:
    """The files of ``folder`` beside the checksums on record; only what is in the folder is opened, no link followed.

    Raises: OutputError for a file that cannot be read.
    """
    found = checksums(folder)
    there = [name for name in recorded if name in found]
    changed = tuple(name for name in there if found[name] != recorded[name] or found[name] == NO_PLAIN_FILE)
    return FileReport(
        folder=folder,
        same=len(there) - len(changed),
        missing=tuple(name for name in recorded if name not in found),
        changed=changed,
        extra=tuple(name for name in found if name not in recorded),
    )


def _unrecorded(name: str) -> bool:
    return name in UNRECORDED or fnmatch.fnmatch(name.rpartition("/")[2], PARTIAL)


def _names(folder: Path) -> Iterator[str]:
    """Everything below ``folder`` that is no folder, links to folders included, by its path in it, with ``/``."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*files, *links):
            yield (Path(place) / name).relative_to(folder).as_posix()


def _checksum(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return NO_PLAIN_FILE
        with path.open("rb") as stream:
            return sha256(stream)
    except OSError as error:
        raise unreadable(path, error) from error
