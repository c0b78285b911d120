"""A whole job in miniature, and one finished run of it for all tests to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curlfx.run.runner import RunResult, run

NETWORKS = Path(__file__).with_name("tiny_networks.py")


@pytest.fixture(scope="session")
def tiny_job() -> dict[str, Any]:
    """Settings of a job of a few seconds."""
    return {
        "model": f"{NETWORKS}:residual",
        "data": "digits",
        "limit": 100,
        "proxy_images": 32,
        "target": {"macs": "60%"},
        "round_to": 4,
        "train": {"epochs": 2},
        "recovery": {"epochs": 2},
        "bench": {"rounds": 2, "runs": 2, "warmup": 1},
    }


@pytest.fixture(scope="session")
def finished(tiny_job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The job, done without interruption."""
    return run({**tiny_job, "out": tmp_path_factory.mktemp("finished") / "run"})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
