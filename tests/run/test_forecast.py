"""What ``--explain`` is made of: a job is described, and nothing is done or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from curlfx.errors import BudgetError, OutputError
from curlfx.run.forecast import forecast
from curlfx.run.pace import measure_pace
from curlfx.run.runner import RunResult
from curlfx.run.settings import make_config
from tests.run.tiny_networks import Residual


def test_describes_the_job_that_would_be_done(finished: RunResult, tiny_job: dict[str, Any], elsewhere: Path) -> None:
    found = forecast(make_config({**tiny_job, "recovery": {"epochs": 3, "recalibrate_batches": 2}}))
    assert list(elsewhere.iterdir()) == []
    summary = finished.summary
    assert (found.macs, found.params) == (summary["dense"]["macs"], summary["dense"]["params"])
    assert (found.groups, found.channels, found.frozen) == (2, 32, 10)
    assert found.data == "100 training and 100 test images of 10 classes from digits, 1 x 8 x 8"
    assert found.target == "macs 60%"
    assert found.directory == Path("runs/residual-1")
    assert [step.name for step in found.steps] == [
        "train",
        "dense",
        "score",
        "plan",
        "slim",
        "recalibrate",
        "recover",
        "accuracy",
        "export, verify",
        "bench",
    ]
    work = {step.name: step.work for step in found.steps}
    assert work["train"] == "the dense network: 2 epochs of 2 steps, 4 in all"
    assert work["recover"] == "the slim network: 3 epochs of 2 steps, 6 in all, under the dense one"
    assert all(step.seconds is None or step.seconds >= 0 for step in found.steps)
    assert found.seconds == sum(step.seconds or 0.0 for step in found.steps)
    assert json.loads(json.dumps(found.as_dict()))["steps"][0]["name"] == "train"


def test_the_files_are_those_of_a_run(finished: RunResult, tiny_job: dict[str, Any], elsewhere: Path) -> None:
    files = set(forecast(make_config(tiny_job)).files)
    assert files == {path.name + "/" * path.is_dir() for path in finished.directory.iterdir()} - {".lock"}


def test_steps_follow_the_settings(tiny_job: dict[str, Any], elsewhere: Path) -> None:
    asked = {
        "train": {"epochs": 0},
        "recovery": {"epochs": 0, "refine": {"epochs": 2, "expand": True}},
        "export": {"int8": True},
        "importance": "magnitude",
    }
    found = forecast(make_config({**tiny_job, **asked}))
    work = {step.name: step.work for step in found.steps}
    assert "train" not in work
    assert "recover" not in work
    assert work["refine"] == "labels and slim network: 2 epochs of 10 steps, 20 in all"
    assert "also in 8 bits" in work["export, verify"]
    assert "slim.int8.onnx" in found.files
    assert next(step.seconds for step in found.steps if step.name == "score") == 0


def test_what_a_run_refuses_is_refused(tiny_job: dict[str, Any], elsewhere: Path) -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        forecast(make_config({**tiny_job, "target": {"macs": "1%"}}))
    (elsewhere / "mine").touch()
    with pytest.raises(OutputError, match="the folder is not empty"):
        forecast(make_config({**tiny_job, "out": elsewhere}))


@pytest.mark.slow
def test_published_weights_are_not_asked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    asked = {
        "model": "torchvision:squeezenet1_1",
        "weights": "default",
        "data": "random",
        "image_size": 64,
        "limit": 10,
    }
    found = forecast(make_config({**asked, "importance": "magnitude", "recovery": {"epochs": 1}}))
    assert "train" not in [step.name for step in found.steps]


def test_a_network_is_timed_on_a_copy() -> None:
    network = Residual().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pace = measure_pace(network, torch.randn(2, 1, 8, 8), 10**9, 64, torch.device("cpu"))
    assert pace.images == 2  # as many as have the multiply-adds of a moment
    assert min(pace.forward, pace.step) > 0
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
