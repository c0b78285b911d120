"""Iterative pruning within a job: scored again before every step; killed between steps, it ends the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curlfx.errors import PlanError
from curlfx.planning import SlimPlan, iterate
from curlfx.progress import StepEvent
from curlfx.run import scoring
from curlfx.run.job import Job
from curlfx.run.runner import run
from tests.killed import Killed

STEPS = 3


@pytest.fixture
def job(tiny_job: dict[str, Any]) -> dict[str, Any]:
    return {
        **tiny_job, "limit": 40, "proxy_images": 20, "importance": "kl", "iterative_steps": STEPS, "round_to": 1,
        "target": {"macs": "50%"}, "train": {"epochs": 1}, "recovery": {"epochs": 0},
    }  # fmt: skip


def widths(path: Path) -> dict[str, int]:
    values: dict[str, list[float]] = json.loads(path.read_text())["values"]
    return {group: len(scores) for group, scores in values.items()}


@pytest.mark.slow
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


def left_over(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("*.unfinished.*"))


def same(resumed: Path, whole: Path) -> None:
    assert left_over(resumed) == left_over(whole) == []
    for name in ("plan.json", "slim.safetensors", "checkpoints/scores-2.json", "checkpoints/scores-3.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_killed_between_steps_and_within_one(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run({**job, "out": tmp_path / "whole"})
    scored, asked = scoring._scored, []

    def killed(job: Job, *arguments: Any) -> Any:
        asked.append(arguments[-1])
        if asked == ["scores", "scores-2", "scores-3"]:
            raise Killed
        return scored(job, *arguments)

    monkeypatch.setattr(scoring, "_scored", killed)
    with pytest.raises(Killed):
        run({**job, "out": tmp_path / "between"})
    resumed = run({"resume": tmp_path / "between"})
    assert asked == ["scores", "scores-2", "scores-3", "scores-2", "scores-3"]
    same(resumed.directory, whole.directory)

    class Murderer:
        def on_step(self, event: StepEvent) -> None:
            if event.stage == "score" and event.step > 1 and (tmp_path / "within/checkpoints/scores.json").exists():
                raise Killed

    with pytest.raises(Killed):
        run({**job, "out": tmp_path / "within"}, progress=Murderer())
    assert not (tmp_path / "within/checkpoints/scores-2.json").exists()
    same(run({"resume": tmp_path / "within"}).directory, whole.directory)


def test_a_network_that_cannot_go_in_steps_is_refused_first(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PlanError("group 'a' has 3 channels left, the slim network has 2 of them")

    monkeypatch.setattr(iterate, "of_what_is_left", refuse)
    with pytest.raises(PlanError, match="3 channels left"):
        run({**job, "out": tmp_path / "run"})
    assert not (tmp_path / "run").exists()
