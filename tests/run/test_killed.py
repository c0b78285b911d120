"""``kill -9`` at any moment: what was finished is kept, and the resumed run ends as one that was left alone."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curlfx.run.recheck import check_record
from curlfx.run.runner import RunResult, run
from tests.run.killing import run_and_die
from tests.run.test_job import repeatable

REPEATED = ("plan.json", "layers.csv", "slim.safetensors", "dense.onnx", "slim.onnx", "checkpoints/dense.safetensors")
"""Files that are the same, byte for byte, in every run of a job."""
LATEST = 90
"""Events after which a process dies at the latest; a whole job has about three times as many."""

PATIENCE = 900
"""Seconds after which a process is said to hang; a job takes a few of them, on a busy machine many more."""


def killed(settings: dict[str, Any], out: Path, moment: int) -> bool:
    """Run in a process of its own until the ``moment``; whether it died there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.run.killing"])
    process = context.Process(target=run_and_die, args=(settings, str(out), moment))
    process.start()
    process.join(PATIENCE)
    hangs = process.is_alive()
    process.kill()
    assert not hangs
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in REPEATED}


def require_same_end(folder: Path, finished: RunResult) -> None:
    result = run({"resume": folder})
    assert repeatable(result.summary) == repeatable(finished.summary)
    assert digests(folder) == digests(finished.directory)
    assert not list(folder.rglob("*.partial"))
    record = check_record(folder)
    assert record is not None
    record.require()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
def test_killed_at_random_moments(finished: RunResult, tiny_job: dict[str, Any], tmp_path: Path, kills: int) -> None:
    moments = np.random.default_rng(kills).integers(1, LATEST + 1, kills).tolist()
    folders = [tmp_path / "run-0"]
    for moment in moments:
        while not killed(tiny_job, folders[-1], moment):  # it was done before: kill another one
            folders.append(tmp_path / f"run-{len(folders)}")
    for folder in folders:
        if not (folder / "state.json").exists():  # it died while it made the folder: the same command starts again
            run({**tiny_job, "out": folder})
        require_same_end(folder, finished)
