"""A run in several processes: the first one does it, and all of them train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from curlfx.files import write_bytes
from curlfx.recovery import Processes
from curlfx.run.directory import CHECKPOINTS, RunDirectory
from curlfx.run.job import SLIM, START, Job

SHARED = frozenset({"train", "overparam", "recover", "refine"})
"""Stages that all processes take part in, beside a plan that is searched for; in others they wait at rest."""
SENT = (
    "plan.json",
    SLIM,
    *(f"{CHECKPOINTS}/{name}" for name in ("dense.safetensors", START, "scores.json")),
)
"""What a training reads of what earlier stages left."""

Opened = tuple[RunDirectory, Mapping[str, Any]]


@contextmanager
def open_together(
    group: Processes, open_directory: Callable[[], Opened]
) -> Iterator[tuple[RunDirectory, dict[str, Any], Path]]:
    """The run directory, its settings, and where it is. In all processes but the first it is a temporary one.

    Raises: what ``open_directory`` raises in the first process, in all of them.
    """
    held: list[RunDirectory] = []

    def opened() -> tuple[Path, dict[str, Any], dict[str, Any], dict[str, float]]:
        directory, settings = open_directory()
        held.append(directory)
        return directory.path, dict(settings), directory.done, directory.seconds

    path, settings, done, seconds = group.on_leader(opened)
    with ExitStack() as stack:
        if not group.leads:
            folder = stack.enter_context(TemporaryDirectory(prefix="curlfx-", ignore_cleanup_errors=True))
            held.append(RunDirectory.create(Path(folder) / "run", path.name, settings))
            held[0].done, held[0].seconds = done, seconds
        yield stack.enter_context(held[0]), settings, path


def do_stage(group: Processes, name: str, stage: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """The result of a stage, the same in all processes.

    Raises: what the stage raises; in processes that have no part in it, a CheckError for what is no error of ours.
    """
    searches = name == "plan" and job.config.search.enabled
    if not (name in SHARED or searches):
        return group.on_leader(lambda: stage(job))
    _send_files(group, job.directory)
    return stage(job)


def _send_files(group: Processes, directory: RunDirectory) -> None:
    """Give all processes the files that a training reads: folders may be on machines of their own."""
    if group.count == 1:
        return
    paths = {name: directory.path / name for name in SENT}
    files = group.on_leader(lambda: {name: path.read_bytes() for name, path in paths.items() if path.exists()})
    if not group.leads:
        for name, content in files.items():
            write_bytes(paths[name], content)
