"""``curlfx train`` in miniature: a usual run directory, whose network was pruned while it was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curlfx.cli.train import DEFAULTS
from curlfx.errors import BudgetError, ConfigError
from curlfx.planning import SlimPlan
from curlfx.progress import StepEvent
from curlfx.run.pruner import make_pruner, schedule_of
from curlfx.run.recheck import recheck
from curlfx.run.runner import RunResult, run
from curlfx.run.settings import load_config, make_config
from curlfx.run.subject import examine, load_subject

PHYSICAL = {"gradual": {"interval": 1, "last": 3, "physical": True}, "importance": "taylor", "round_to": 1}


def settings(tiny_job: dict[str, Any], **changed: Any) -> dict[str, Any]:
    train = {"train": {"epochs": 4}, "recovery": {"epochs": 0}, "importance": "magnitude"}
    return {**tiny_job, **train, "gradual": {"interval": 1, "last": 3}, **changed}


@pytest.fixture(scope="module")
def trained(tiny_job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(settings(tiny_job, **PHYSICAL, out=tmp_path_factory.mktemp("trained") / "run"))


@pytest.mark.slow
def test_ends_in_a_usual_run_directory(trained: RunResult) -> None:
    assert trained.passed
    summary = trained.summary
    gradual = summary["gradual"]
    assert [step["epoch"] for step in gradual["steps"]] == [1, 2, 3]
    assert gradual["reached"]
    assert gradual["steps"][-1]["macs"] == summary["slim"]["macs"] <= 0.6 * summary["dense"]["macs"]
    macs = [summary["dense"]["macs"], *(step["macs"] for step in gradual["steps"])]
    assert gradual["training_macs"] == 3 * 100 * sum(macs)
    assert gradual["training_macs_dense"] == 3 * 100 * 4 * macs[0]
    assert gradual["training_seconds"] > 0
    first = gradual["steps"][0]["seconds"]
    assert 0 < gradual["training_seconds_dense"] / 4 <= gradual["training_seconds"] - first + 1e-3
    assert gradual["check"]["error"] <= 1e-9
    assert summary["dense"]["accuracy"] == summary["slim"]["accuracy"]  # zero weights are no channels
    plan = SlimPlan.load(trained.directory / "plan.json")
    assert plan.importance == "taylor"
    assert plan.after.macs == summary["slim"]["macs"]
    state = load_file(trained.directory / "slim.safetensors")
    assert {group: state[group].shape[0] for group in plan.widths} == plan.widths
    assert min(plan.widths.values()) < 16
    assert recheck(trained.directory).passed
    page = (trained.directory / "report.html").read_text(encoding="utf-8")
    assert "Pruning while training" in page
    assert "trained vs slim, float64" in page


@pytest.mark.slow
def test_a_killed_run_ends_the_same(trained: RunResult, tiny_job: dict[str, Any], tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    class Kill:
        def on_step(self, event: StepEvent) -> None:
            if event.stage == "train" and event.epoch == 3:
                raise StopError

    out = tmp_path / "run"
    job = settings(
        tiny_job, gradual={"interval": 1, "last": 3, "physical": True}, importance="taylor", round_to=1, out=out
    )
    with pytest.raises(StopError):
        run(job, progress=Kill())
    run({"resume": out})
    ours, theirs = (load_file(folder / "slim.safetensors") for folder in (out, trained.directory))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    plans = [json.loads((folder / "plan.json").read_text()) for folder in (out, trained.directory)]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_says_when_the_target_was_not_reached(tiny_job: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    result = run(
        settings(tiny_job, gradual={"interval": 2, "last": 2, "amount": 1}, out=tmp_path / "run"), say=said.append
    )
    assert not result.summary["gradual"]["reached"]
    assert result.summary["gradual"]["training_macs"] == result.summary["gradual"]["training_macs_dense"]
    assert any("did not reach the target" in line for line in said)


def test_refuses_before_it_trains(tiny_job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"macs 1 % of dense cannot be reached"):
        run(settings(tiny_job, target={"macs": "1%"}, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("physical", [False, True])
def test_refuses_averages_over_what_goes(tiny_job: dict[str, Any], tmp_path: Path, physical: bool) -> None:
    job = settings(tiny_job, model=tiny_job["model"].replace(":residual", ":normed"), out=tmp_path / "run")
    job["gradual"] = {"interval": 1, "last": 3, "physical": physical}
    with pytest.raises(ConfigError, match=r"averages over the channels of stem\.weight; name them in ignored_layers"):
        run(job)
    assert not (tmp_path / "run").exists()
    config = make_config({**job, "ignored_layers": ["stem"]})
    examine(config, load_subject(config))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"train": {"epochs": 0}}, r"train\.epochs=0"),
        ({"train": {"epochs": 4, "ema_decay": 0.9}}, r"train\.ema_decay"),
        ({"divergence": "softmax", "importance": "kl"}, "divergence"),
        ({"allocation": "knapsack"}, "allocation=knapsack"),
        ({"per": "latency", "target": {"latency_ms": "60%"}}, "per=latency"),
        ({"iterative_steps": 2}, "iterative_steps"),
        ({"absorb_bias": "mean"}, "absorb_bias"),
        ({"recovery": {"epochs": 2}}, r"want recovery\.epochs=0 or recovery\.distillation=0"),
        ({"recovery": {"epochs": 0, "refine": {"epochs": 1}}}, r"want recovery\.refine\.epochs=0"),
        (
            {"recovery": {"epochs": 0, "overparam": {"epochs": 1, "similarity": 1.0, "distillation": 0}}},
            r"want recovery\.overparam\.epochs=0",
        ),
        (
            {"recovery": {"epochs": 0, "overparam": {"epochs": 1, "distillation": 0}}},
            r"want recovery\.overparam\.epochs=0",
        ),
        ({"gradual": {"interval": 1, "amount": "none"}}, r"gradual\.amount = none: want a whole number"),
        ({"gradual": {"interval": -1}}, r"gradual\.interval = -1: want a whole number >= 0, or 'auto'"),
        ({"gradual": {"intervall": 1}}, r"did you mean 'gradual\.interval'"),
    ],
)
def test_what_does_not_go_together(tiny_job: dict[str, Any], changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_config(settings(tiny_job, **changed))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, ("channel", "global")),
        ({"per": "macs"}, ("macs", "global")),
        ({"per": "padded_macs", "allocation": "uniform"}, ("padded_macs", "uniform")),
    ],
)
def test_the_pruner_of_a_configuration(tiny_job: dict[str, Any], asked: dict[str, Any], found: tuple[str, str]) -> None:
    config = make_config(settings(tiny_job, **asked))
    plan = make_pruner(config, load_subject(config).trace(), config.importance).plan()
    assert (plan.per, plan.allocation) == found


@pytest.mark.parametrize(
    ("gradual", "epochs", "found"),
    [
        ({"interval": "auto"}, 200, (15, 150)),
        ({"interval": "auto"}, 8, (1, 6)),
        ({"interval": 21, "last": 150}, 200, (21, 150)),
    ],
)
def test_the_schedule_of_a_configuration(gradual: dict[str, Any], epochs: int, found: tuple[int, int]) -> None:
    schedule = schedule_of(make_config({"gradual": gradual, "train": {"epochs": epochs}, "recovery": {"epochs": 0}}))
    assert (schedule.interval, schedule.last) == found


@pytest.mark.parametrize("gradual", [{"interval": 9}, {"interval": 2, "last": 30}, {"interval": 0}])
def test_schedules_that_do_not_fit(gradual: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"gradual\.interval = "):
        schedule_of(make_config({"gradual": gradual, "train": {"epochs": 8}, "recovery": {"epochs": 0}}))


def test_what_curlfx_train_asks_for(tmp_path: Path) -> None:
    config = load_config(None, ["importance=random", "train.epochs=5"], DEFAULTS)
    assert (config.gradual.interval, config.recovery.epochs, config.importance) == ("auto", 0, "random")
    file = tmp_path / "job.yaml"
    file.write_text("recovery: {epochs: 2, distillation: 0}\ngradual: {last: 3}\n")
    config = load_config(file, [], DEFAULTS)
    assert (config.gradual.interval, config.gradual.last, config.recovery.epochs) == ("auto", 3, 2)
    file.write_text(f"resume: {tmp_path}\n")
    for config in (load_config(file, [], DEFAULTS), load_config(None, [f"resume={tmp_path}"], DEFAULTS)):
        assert config.model_fields_set == {"resume"}
