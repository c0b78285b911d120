"""The whole recovery within a job: recalibrated, trained, refined, reported; killed anywhere, it ends the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curlfx.errors import ConfigError
from curlfx.progress import StepEvent
from curlfx.recovery import RECIPES
from curlfx.run.config import RunConfig
from curlfx.run.directory import RunDirectory
from curlfx.run.runner import RunResult, run
from curlfx.run.settings import load_config, make_config
from curlfx.sources import load_data
from tests.killed import Killed

FILES = ("plan.json", "slim.safetensors", "slim.onnx", "checkpoints/refine.labels-2.npy")


@pytest.fixture(scope="module")
def job(tiny_job: dict[str, Any]) -> dict[str, Any]:
    recovery: dict[str, Any] = {"recipe": "curl", "epochs": 2, "warmup_epochs": 1, "recalibrate_batches": 3}
    recovery["refine"] = {"epochs": 2, "lr": 0.01}
    return {**tiny_job, "limit": 40, "importance": "magnitude", "train": {"epochs": 1}, "recovery": recovery}


@pytest.fixture(scope="module")
def recovered(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run({**job, "out": tmp_path_factory.mktemp("recovered") / "run"})


@pytest.mark.slow
def test_every_stage_is_reported(recovered: RunResult) -> None:
    recovery, seconds = recovered.summary["recovery"], recovered.summary["seconds"]
    after = recovery["accuracy_after"]
    assert list(after) == ["recalibrate", "overparam", "recover", "refine"]
    assert after["overparam"] is None
    after = {stage: accuracy for stage, accuracy in after.items() if stage != "overparam"}
    for accuracy in (recovery["accuracy_before"], *after.values()):
        assert accuracy * 40 == pytest.approx(round(accuracy * 40))
    assert after["refine"] == recovered.summary["slim"]["accuracy"]
    assert all(seconds[stage] > 0 for stage in after)
    assert (recovery["recipe"], recovery["mixup"], recovery["refine"]["epochs"]) == ("curl", 1.0, 2)
    done = json.loads((recovered.directory / "state.json").read_text())["done"]
    assert done["recalibrate"] == {"batches": 3, "norms": 1, "accuracy": after["recalibrate"]}
    assert done["refine"] == {"epochs": 2, "labels": "checkpoints/refine.labels-2.npy"}
    assert done["recover"] == {"epochs": 2, "accuracy": after["recover"]}
    labels = np.load(recovered.directory / "checkpoints/refine.labels-2.npy")
    assert (labels.shape, labels.dtype) == ((6 * 40, 10), np.float32)
    page = (recovered.directory / "report.html").read_text()
    assert "after refine" in page


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "epoch"), [pytest.param("recover", 2, marks=pytest.mark.slow), ("refine", 2)])
def test_killed_within_a_stage(
    recovered: RunResult, job: dict[str, Any], tmp_path: Path, stage: str, epoch: int
) -> None:
    class Murderer:
        def on_step(self, event: StepEvent) -> None:
            if (event.stage, event.epoch) == (stage, epoch):
                raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        run({**job, "out": out}, progress=Murderer())
    again = run({"resume": out})
    for name in FILES:
        assert (out / name).read_bytes() == (recovered.directory / name).read_bytes(), name
    assert again.summary["recovery"] == recovered.summary["recovery"]


@pytest.mark.slow
def test_killed_before_and_after_every_record(
    recovered: RunResult, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a stage are written before its record: a process may die in between, or right after."""
    record, out = RunDirectory.record, tmp_path / "run"
    moments = [(stage, moment) for stage in ("recalibrate", "recover", "refine") for moment in ("before", "after")]

    def record_or_die(directory: RunDirectory, stage: str, *rest: Any) -> None:
        if moments and (stage, "before") == moments[0]:
            moments.pop(0)
            raise Killed
        record(directory, stage, *rest)
        if moments and (stage, "after") == moments[0]:
            moments.pop(0)
            raise Killed

    monkeypatch.setattr(RunDirectory, "record", record_or_die)
    with pytest.raises(Killed):
        run({**job, "out": out})
    while moments:
        with pytest.raises(Killed):
            run({"resume": out})
    again = run({"resume": out})
    for name in FILES:
        assert (out / name).read_bytes() == (recovered.directory / name).read_bytes(), name
    assert again.summary["recovery"] == recovered.summary["recovery"]


def test_a_recipe_gives_defaults_and_no_more() -> None:
    config = load_config(None, ["recovery.recipe=curl", "recovery.lr=0.5", "recovery.refine.epochs=3"])
    recipe, wanted = config.recovery.of(seed=4, device="cpu"), RECIPES["curl"].on(seed=4, device="cpu")
    assert (recipe.train.lr, recipe.refine.epochs) == (0.5, 3)
    assert recipe.train.differences(wanted.train) == ["lr"]
    assert recipe.refine.differences(wanted.refine) == ["epochs"]
    assert (recipe.expand, recipe.expand_refine) == (wanted.expand, wanted.expand_refine)
    assert make_config(config.resolved()) == config


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_of_a_job_are_those_of_the_library(name: str) -> None:
    config = make_config({"recovery": {"recipe": name}})
    recipe, wanted = config.recovery.of(seed=0, device="auto"), RECIPES[name]
    assert recipe.train == wanted.train
    assert (recipe.expand, recipe.expand_refine, recipe.refine.epochs) == (
        wanted.expand, wanted.expand_refine, wanted.refine.epochs,
    )  # fmt: skip
    if wanted.refine.epochs:
        assert recipe.refine == wanted.refine
    assert recipe.overparam == wanted.overparam
    assert make_config({"recovery": {}}) == make_config({"recovery": {"recipe": "distillation"}}) == RunConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recovery.recipe=curly", "recovery.recipe = curly: want 'distillation' or 'curl' or 'curl-large'"),
        ("recovery.recipe=[]", "recovery.recipe = []: want one of distillation, curl, curl-large, overparam, or ["),
        ("recovery.recipe=[curl, overparam]", "['curl', 'overparam']: want one of distillation, "),
        ("recovery.overparam.rate=0", "recovery.overparam.rate = 0: want a whole number >= 1"),
        ("recovery.overparam.init=zero", "recovery.overparam.init = zero: want 'semi_orthogonal' or 'pinv' or"),
        ("recovery.overparam.batch_size=1", "recovery.overparam: overparam: one image is like itself: want batch_size"),
        ("recovery.merge_every=2", "did you mean 'recovery.overparam.merge_every'?"),
        ("recovery.mixup=-1", "recovery.mixup = -1: want a number >= 0"),
        ("recovery.refine.lr=0", "recovery.refine.lr = 0: want a number > 0"),
        ("recovery.refine=3", "recovery.refine = 3: want keys with values: epochs, lr"),
        ("recovery.refine=3", ", like recovery.refine.epochs=…"),
        ("recovery.refine.label_lr=x", "recovery.refine.label_lr = x: want a number >= 0"),
        ("recovery.recalibrate_batches=-1", "recovery.recalibrate_batches = -1: want a whole number >= 0"),
        ("recalibrate_batches=5", "did you mean 'recovery.recalibrate_batches'?"),
        ("recovery={recipe: curl, epochs: 3}", "recovery: warmup_epochs = 5: want at most epochs = 3"),
        ("train={momentum: 0}", "train: nesterov = true needs momentum above 0"),
        ("train_limit=0", "train_limit = 0: want a whole number >= 1"),
        ("recovery=curly", "recovery.recipe = curly: want 'distillation'"),
    ],
)
def test_fault_names_key_value_and_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fifty_images_of_each_class_and_all_test_images(tmp_path: Path, job: dict[str, Any]) -> None:
    config = make_config({**job, "limit": None, "train_limit": 500})
    data = load_data(config.data, limit=config.limit, train_limit=config.train_limit)
    assert data.images("train").labels.bincount().tolist() == [50] * 10
    assert data.size("test") == 450
