"""Over-parameterisation within a job: before CURL's trainings, reported, and gone from the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from curlfx.errors import UsageError
from curlfx.progress import StepEvent
from curlfx.recovery import RECIPES
from curlfx.run.runner import RunResult, run
from curlfx.run.settings import load_config, make_config
from curlfx.run.subject import examine, load_subject
from tests.killed import Killed

RECOVERY: dict[str, Any] = {
    "recipe": ["overparam", "curl"],
    "epochs": 1,
    "warmup_epochs": 0,
    "refine": {"epochs": 1},
    "overparam": {"epochs": 2, "rate": 2, "merge_every": 1, "lr": 0.02},
}


@pytest.fixture(scope="module")
def job(tiny_job: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_job, "limit": 40, "importance": "magnitude", "train": {"epochs": 1}, "recovery": RECOVERY}


@pytest.fixture(scope="module")
def recovered(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run({**job, "out": tmp_path_factory.mktemp("overparam") / "run"})


def outline(path: Path) -> list[object]:
    graph = onnx.load(path).graph
    nodes = [(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node]
    return [nodes, [(one.name, tuple(one.dims)) for one in graph.initializer]]


@pytest.mark.slow
def test_every_stage_is_reported(recovered: RunResult) -> None:
    assert recovered.passed
    recovery, seconds = recovered.summary["recovery"], recovered.summary["seconds"]
    after = recovery["accuracy_after"]
    assert list(after) == ["recalibrate", "overparam", "recover", "refine"]
    assert after["recalibrate"] is None
    assert after["refine"] == recovered.summary["slim"]["accuracy"]
    assert all(after[stage] is not None and seconds[stage] > 0 for stage in ("overparam", "recover", "refine"))
    assert recovery["recipe"] == ["overparam", "curl"]
    assert (recovery["overparam"]["rate"], recovery["mixup"]) == (2, 1.0)
    done = json.loads((recovered.directory / "state.json").read_text())["done"]
    assert done["overparam"] == {"epochs": 2, "accuracy": after["overparam"]}
    assert "after overparam" in (recovered.directory / "report.html").read_text()


@pytest.mark.slow
def test_the_file_is_that_of_the_slim_network(recovered: RunResult, job: dict[str, Any], tmp_path: Path) -> None:
    settings = {**job, "recovery": {"epochs": 0}, "out": tmp_path / "plain"}
    plain = run(settings)
    assert plain.summary["slim"]["macs"] == recovered.summary["slim"]["macs"]
    files = [result.directory / "slim.onnx" for result in (plain, recovered)]
    assert outline(files[0]) == outline(files[1])
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.slow
def test_killed_within_the_stage(recovered: RunResult, job: dict[str, Any], tmp_path: Path) -> None:
    class Murderer:
        def on_step(self, event: StepEvent) -> None:
            if (event.stage, event.epoch) == ("overparam", 2):
                raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        run({**job, "out": out}, progress=Murderer())
    again = run({"resume": out})
    for name in ("slim.safetensors", "slim.onnx"):
        assert (out / name).read_bytes() == (recovered.directory / name).read_bytes(), name
    assert again.summary["recovery"] == recovered.summary["recovery"]


@pytest.mark.parametrize("override", ["recovery=overparam", "recovery.recipe=overparam", "recovery=[overparam]"])
def test_alone_by_name(override: str) -> None:
    recipe = load_config(None, [override]).recovery.of(seed=0, device="auto")
    wanted = RECIPES["overparam"]
    assert replace(recipe, refine=wanted.refine) == wanted
    assert recipe.refine.epochs == 0


def test_a_stage_of_ones_own_before_any_recipe() -> None:
    config = load_config(None, ["recovery.overparam.epochs=3", "recovery.overparam.layers=stem"])
    found, wanted = config.recovery.of(seed=0, device="auto").overparam, RECIPES["overparam"].overparam
    assert (found.train.epochs, found.layers) == (3, ("stem",))
    assert found.train.differences(wanted.train) == ["epochs"]
    both = load_config(None, ["recovery=[overparam, curl]"])
    assert make_config(both.resolved()) == both
    recipe = both.recovery.of(seed=0, device="auto")
    assert (recipe.train, recipe.overparam) == (RECIPES["curl"].train, wanted)


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        ("residual", ("covn",), "'covn' names no convolution or linear layer of the network"),
        ("residual", ("innner",), "did you mean 'inner'"),
        ("all_frozen", (), "the network has no convolution or linear layer but the last"),
    ],
)
def test_what_cannot_be_enlarged_is_refused_before_any_training(
    tiny_job: dict[str, Any], model: str, layers: tuple[str, ...], message: str
) -> None:
    name = tiny_job["model"].replace("residual", model)
    settings = {**tiny_job, "model": name, "target": {"macs": "100%"}}
    refused = make_config({**settings, "recovery": {"recipe": "overparam", "overparam": {"layers": layers}}})
    with pytest.raises(UsageError, match=message):
        examine(refused, load_subject(refused))
    unused = make_config({**settings, "recovery": {"overparam": {"layers": layers}}})
    examine(unused, load_subject(unused))
