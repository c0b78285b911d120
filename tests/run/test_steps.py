"""Iterative pruning within a job: scored again before every step; killed between steps, it ends the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curlfx.planning import SlimPlan
from curlfx.run import scoring
from curlfx.run.job import Job
from curlfx.run.runner import run

STEPS = 3


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def job(tiny_job: dict[str, Any]) -> dict[str, Any]:
    return {
        **tiny_job, "limit": 40, "proxy_images": 20, "importance": "kl", "iterative_steps": STEPS, "round_to": 1,
        "target": {"macs": "50%"}, "train": {"epochs": 1}, "recovery": {"epochs": 0},
    }  # fmt: skip


def widths(path: Path) -> dict[str, int]:
    values: dict[str, list[float]] = json.loads(path.read_text())["values"]
    return {group: len(scores) for group, scores in values.items()}


def test_each_step_scores_what_is_left(job: dict[str, Any], tmp_path: Path) -> None:
    found = run({**job, "out": tmp_path / "steps"})
    plan = SlimPlan.load(found.directory / "plan.json")
    assert plan.after.macs <= plan.before.macs / 2
    steps = [widths(found.directory / "checkpoints" / f"scores{suffix}.json") for suffix in ("", "-2", "-3")]
    kept = {group: len(channels) for group, channels in plan.keep.items()}
    totals = [sum(step.values()) for step in [*steps, kept]]
    assert totals == sorted(set(totals), reverse=True)
    once = run({**job, "iterative_steps": 1, "out": tmp_path / "once"})
    assert not (once.directory / "checkpoints" / "scores-2.json").exists()
    assert (once.directory / "checkpoints" / "scores.json").read_bytes() == (
        found.directory / "checkpoints" / "scores.json"
    ).read_bytes()


def test_killed_between_steps(job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run({**job, "out": tmp_path / "whole"})
    scored, asked = scoring._scored, []

    def killed(job: Job, *arguments: Any) -> Any:
        asked.append(arguments[-1])
        if asked == ["scores.json", "scores-2.json", "scores-3.json"]:
            raise Killed
        return scored(job, *arguments)

    monkeypatch.setattr(scoring, "_scored", killed)
    with pytest.raises(Killed):
        run({**job, "out": tmp_path / "killed"})
    resumed = run({"resume": tmp_path / "killed"})
    assert asked == ["scores.json", "scores-2.json", "scores-3.json", "scores-3.json"]
    for name in ("plan.json", "slim.safetensors", "checkpoints/scores-2.json", "checkpoints/scores-3.json"):
        assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name
