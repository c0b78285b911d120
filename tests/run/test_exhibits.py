"""What a run adds for its page, and the page of a real run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from curlfx.errors import OutputError
from curlfx.run.directory import RunDirectory
from curlfx.run.exhibits import epochs
from curlfx.run.reporting import write_page
from curlfx.run.runner import RunResult


def test_the_page_of_a_run_has_every_chart(finished: RunResult) -> None:
    page = (finished.directory / "report.html").read_text()
    for chart in ("stations", "epochs", "latency", "operators", "widths", "macs", "scores", "coupling", "seconds"):
        assert f'id="chart-{chart}"' in page
    for missing in ("front", "controls", "steps", "attempts"):
        assert f'id="chart-{missing}"' not in page
    assert "curlfx run " in page


def test_the_record_holds_what_the_page_needs(finished: RunResult) -> None:
    done = json.loads((finished.directory / "state.json").read_text())["done"]
    found = done["report"]
    assert [(one["stage"], one["epoch"]) for one in found["epochs"]] == [
        ("train", 1), ("train", 2), ("recover", 1), ("recover", 2),
    ]  # fmt: skip
    assert found["epochs"][-1]["validation"] == finished.summary["slim"]["accuracy"]
    kept = {group["id"]: group["kept"] for group in done["slim"]["groups"]}
    assert {one["layer"]: one["after"] for one in found["widths"]}["stem"] == kept["stem.weight"]
    assert list(found["operators"]) == ["dense", "slim"]
    assert all(one["milliseconds"] >= 0 and one["nodes"] > 0 for of in found["operators"].values() for one in of)


def test_the_page_is_drawn_again_from_the_files(finished: RunResult, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.directory, copy)
    before = (copy / "report.html").read_text()
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    shutil.copy(finished.directory / "checkpoints" / "scores.json", copy / "checkpoints")
    opened, _ = RunDirectory.reopen(copy)
    with opened:
        write_page(opened)
        assert (copy / "report.html").read_text() == before
        (copy / "checkpoints" / "scores.json").unlink()
        write_page(opened)
    assert 'id="chart-scores"' not in (copy / "report.html").read_text()


def test_a_checkpoint_that_is_gone_or_damaged_is_no_obstacle(finished: RunResult, tmp_path: Path) -> None:
    assert epochs(tmp_path) == []
    shutil.copy(finished.directory / "checkpoints" / "recover.pt", tmp_path / "control-uniform.pt")
    (tmp_path / "recover.pt").write_bytes(b"nothing")
    assert [one["stage"] for one in epochs(tmp_path)] == ["control uniform, recover"] * 2


@pytest.mark.parametrize(
    ("stage", "result"),
    [
        ("report", {"surprise": 1}),
        ("report", {"outline": {"rows": [{}], "lanes": []}}),
        ("report", {"widths": [{"layer": "a", "before": "x", "after": None}]}),
    ],
)
def test_a_record_that_no_run_writes(finished: RunResult, tmp_path: Path, stage: str, result: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(finished.directory, tmp_path / "run"))
    state = json.loads((copy / "state.json").read_text())
    state["done"][stage] |= result
    (copy / "state.json").write_text(json.dumps(state))
    opened, _ = RunDirectory.reopen(copy)
    with opened, pytest.raises(OutputError, match=r"run: its records cannot be shown \(\w+: .*restore state\.json"):
        write_page(opened)
