"""Jobs that search for their widths, on the command line and after a kill."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch.testing import assert_close

from curlfx.cli import main
from curlfx.errors import BudgetError, ConfigError, DataError
from curlfx.planning import SlimPlan
from curlfx.recovery.checkpoint import Checkpoint
from curlfx.run import search as run_search
from curlfx.run.directory import RunDirectory
from curlfx.run.recheck import recheck
from curlfx.run.runner import RunResult, run
from curlfx.run.settings import make_config
from curlfx.search import SearchResult, search
from curlfx.search.budget import Budget
from tests.killed import Killed

SMALL = {
    "enabled": True, "least": 0.25, "step": 0.25, "population": 5, "parents": 2, "mutants": 2, "crossovers": 2,
    "generations": 2, "calibration_batches": 2, "lower": 0.5, "cuts": ["relu"], "held_out": 0.2,
    "train": {"epochs": 1, "batch_size": 32},
}  # fmt: skip


@pytest.fixture
def job(tiny_job: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    plain = {name: value for name, value in tiny_job.items() if name != "round_to"}
    return {
        **plain, "importance": "magnitude", "train": {"epochs": 0}, "recovery": {"epochs": 1}, "search": SMALL,
        "out": tmp_path / "run",
    }  # fmt: skip


def found_in(result: RunResult) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((result.directory / "search.json").read_text())
    return record


@pytest.mark.slow
def test_a_search_ends_in_a_run_directory_with_its_controls(job: dict[str, Any]) -> None:
    result = run({**job, "search": {**SMALL, "controls": True}})
    plan, record = SlimPlan.load(result.directory / "plan.json"), found_in(result)
    assert result.passed
    assert plan.allocation == "search"
    assert plan.widths == record["best"]["widths"]
    assert plan.after.macs <= 0.6 * plan.before.macs
    assert set(record["controls"]) == {"uniform", "random"}
    assert all(0 <= one["accuracy"] <= 1 for one in record["controls"].values())
    assert record["best"]["value"] == min(one["value"] for one in record["front"])
    assert record["stages"] == ["relu", "linear"]
    assert recheck(result.directory).passed


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_result(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(job)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_search, "search", killed)
        with pytest.raises(Killed):
            run({**job, "out": tmp_path / "killed"})
    resumed = run({"resume": tmp_path / "killed"})
    assert found_in(resumed)["best"] == found_in(straight)["best"]
    weights = [safetensors.torch.load_file(each.directory / "slim.safetensors") for each in (straight, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("start", ["dense", "scratch", "supernet"])
def test_what_the_recovery_starts_from(job: dict[str, Any], start: str) -> None:
    result = run({**job, "recovery": {"epochs": 0}, "search": {**SMALL, "start": start}})
    slim = safetensors.torch.load_file(result.directory / "slim.safetensors")
    keep = SlimPlan.load(result.directory / "plan.json").keep.get("stem.weight", range(16))
    from tests.run.tiny_networks import residual

    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = residual().stem.weight.detach()[list(keep)]
    moved = not torch.equal(slim["stem.weight"], stem)
    measured = bool(slim["bn.running_mean"].any())
    assert (moved, measured) == ((True, True) if start == "supernet" else (False, False))


@pytest.mark.slow
def test_scratch_are_random_weights_also_where_they_are_computed(job: dict[str, Any]) -> None:
    """Weight normalisation is folded when the network is traced: the trained weight must not stay."""
    changed = {"train": {"epochs": 1}, "recovery": {"epochs": 0}}
    model = job["model"].replace("residual", "weight_normed")
    result = run({**job, **changed, "model": model, "search": {**SMALL, "start": "scratch"}})
    slim = safetensors.torch.load_file(result.directory / "slim.safetensors")
    plan = SlimPlan.load(result.directory / "plan.json")
    from tests.run.tiny_networks import weight_normed

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = weight_normed().inner.weight.detach()
    rows, columns = (list(plan.keep.get(f"{name}.weight", range(16))) for name in ("inner", "stem"))
    assert_close(slim["inner.weight"], weight[rows][:, columns])


@pytest.mark.slow
def test_controls_are_started_and_recovered_as_what_was_found(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control with the widths that were found ends in the same weights."""

    def alike(*arguments: Any, **options: Any) -> SearchResult:
        found = search(*arguments, **options)
        return replace(found, controls={"uniform": found.best})

    monkeypatch.setattr(run_search, "search", alike)
    recovery = {"epochs": 1, "recalibrate_batches": 2}
    wanted = {**SMALL, "start": "dense", "controls": True}
    result = run({**job, "train": {"epochs": 1}, "absorb_bias": "mean", "recovery": recovery, "search": wanted})
    saved = [Checkpoint.load(result.directory / "checkpoints" / name) for name in ("recover.pt", "control-uniform.pt")]
    assert all(torch.equal(tensor, saved[1].model[name]) for name, tensor in saved[0].model.items())
    assert found_in(result)["controls"]["uniform"]["accuracy"] == result.summary["slim"]["accuracy"]


def test_what_only_controls_or_workers_miss_is_refused_before_any_training(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: Budget) -> None:
        raise BudgetError("uniform widths miss it")

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "uniform", unreachable)
        with pytest.raises(BudgetError, match="uniform widths miss it"):
            run({**job, "search": {**SMALL, "controls": True}})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="workers: Ray is not installed"):
        run({**job, "search": {**SMALL, "workers": 2}})
    assert not job["out"].exists()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"search": {**SMALL, "cuts": ["conv2d_1"]}}, ConfigError, "cuts: 'conv2d_1' is no tensor that every path"),
        ({"target": {"macs": "1%"}}, BudgetError, "the narrowest network of the search space has"),
        ({"allocation": "uniform"}, ConfigError, "search: a search chooses all widths itself; leave out allocation"),
        ({"iterative_steps": 2}, ConfigError, "leave out iterative_steps=2"),
        ({"floor": 0.1}, ConfigError, "leave out floor=0.1, or want search.least"),
        ({"round_to": 4}, ConfigError, "leave out round_to=4, or want search.divisor"),
        ({"search": {**SMALL, "train": {"batch_size": 1}}}, ConfigError, "measured on batches of 2 or more images"),
        ({"train": {"epochs": 2}, "gradual": {"interval": 1}}, ConfigError, "does not go with search.enabled"),
        ({"absorb_bias": "exact"}, ConfigError, "biases are absorbed into dense weights only"),
        ({"search": {**SMALL, "mutants": 9}}, ConfigError, "mutants = 9 and crossovers = 2: want at most population"),
        ({"search": {**SMALL, "held_out": 0.001}}, DataError, "search.held_out = 0.001: 100 images of digits"),
        ({"search": {**SMALL, "ray_address": "auto"}}, ConfigError, "ray_address needs workers"),
        ({"search": {"train": {"ema_decay": 0.9}}}, ConfigError, "search.train: ema_decay = 0.9"),
        ({"search": {"trian": {}}}, ConfigError, "unknown key 'search.trian'; did you mean 'search.train'?"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_written(
    job: dict[str, Any], changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        run({**job, **changed})
    assert message in str(caught.value)
    assert not job["out"].exists()


def test_the_command_line_refuses_what_would_not_search(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    none, settings = tmp_path / "none", make_config({**job, "search": {"enabled": False}}).resolved()
    RunDirectory.create(tmp_path / "plain", "plain", settings).close()
    for arguments, message in (
        (["search.enabled=false", f"out={none}"], "search.enabled=false: this command searches for widths"),
        (["--controls", "search.controls=false", f"out={none}"], "leave out one of the two"),
        ([f"resume={tmp_path / 'plain'}"], "that run does not search for widths; use curlfx run resume="),
        ([f"resume={tmp_path / 'plain'}", "--controls"], "goes on with that run's own settings; leave it out"),
    ):
        monkeypatch.setattr("sys.argv", ["curlfx", "search", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert not none.exists()


@pytest.mark.slow
def test_the_command_line(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    settings = {**job, "out": str(job["out"]), "search": {**SMALL, "enabled": False}}
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr("sys.argv", ["curlfx", "search", str(file), "search.lower=0.4", "--controls"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "networks compared; the front is in" in shown
    assert [line.split()[0] for line in shown.splitlines()[-4:-1]] == ["found", "uniform", "random"]
    assert yaml.safe_load((job["out"] / "config.yaml").read_text())["search"]["lower"] == 0.4
