"""A job that two processes do: started by torchrun, they leave one run directory, and what one process would leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from curlfx.run.runner import run
from tests.recovery.test_processes import ROOT, environment, free_port

pytestmark = pytest.mark.slow

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PATIENCE = 1800  # seconds after which processes are said to hang
ROUNDING = 1e-4  # of float32, over a few steps


@pytest.fixture
def job(tiny_job: dict[str, Any]) -> dict[str, Any]:
    recovery = {"recipe": ["overparam", "curl"], "epochs": 1, "warmup_epochs": 0, "refine": {"epochs": 1}}
    recovery["overparam"] = {"epochs": 1, "warmup_epochs": 0}
    small = {"limit": 60, "importance": "magnitude", "device": "cpu", "recovery": recovery}
    return {**tiny_job, **small, "train": {"epochs": 2, "amp": "off"}}


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *TORCHRUN, "-m", "curlfx", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def dense(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "checkpoints" / "dense.safetensors")


def test_torchrun(job: dict[str, Any], tmp_path: Path) -> None:
    file, out = tmp_path / "job.yaml", tmp_path / "together"
    file.write_text(yaml.safe_dump(job))
    done = started("run", str(file), f"out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"run directory  {out}") == 1
    assert done.stderr.count("2 processes train together") == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verification"]["passed"]
    assert {name for name in ("overparam", "recover", "refine") if summary["seconds"][name] > 0.1} == {
        "overparam", "recover", "refine",
    }  # fmt: skip
    assert (out / "checkpoints" / "refine.labels-1.npy").is_file()
    run({**job, "out": tmp_path / "alone", "recovery": {"epochs": 0}})
    torch.testing.assert_close(dense(out), dense(tmp_path / "alone"), rtol=ROUNDING, atol=ROUNDING)

    state = json.loads((out / "state.json").read_text())  # as if it had been killed within its recovery
    for name in list(state["done"])[list(state["done"]).index("recover") :]:
        del state["done"][name], state["seconds"][name]
    (out / "state.json").write_text(json.dumps(state))
    before = (out / "slim.safetensors").read_bytes()
    again = started("run", f"resume={out}")
    assert again.returncode == 0, again.stderr
    assert (out / "slim.safetensors").read_bytes() == before


def test_a_search(job: dict[str, Any], tmp_path: Path) -> None:
    search = {
        "least": 0.25, "step": 0.25, "population": 4, "parents": 2, "mutants": 2, "crossovers": 1, "generations": 1,
        "calibration_batches": 2, "lower": 0.5, "held_out": 0.2, "train": {"epochs": 1, "batch_size": 32},
    }  # fmt: skip
    plain = {name: value for name, value in job.items() if name != "round_to"}
    plain |= {"train": {"epochs": 0}, "recovery": {"epochs": 1}, "search": search}
    file, out = tmp_path / "job.yaml", tmp_path / "together"
    file.write_text(yaml.safe_dump(plain))
    done = started("search", "--controls", str(file), f"out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("networks compared; the front is in") == 1
    assert set(json.loads((out / "search.json").read_text())["controls"]) == {"uniform", "random"}
    again = started("search", f"resume={out}")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout


def test_what_the_first_one_refuses_ends_both(job: dict[str, Any], tmp_path: Path) -> None:
    file, port = tmp_path / "job.yaml", free_port()
    file.write_text(yaml.safe_dump({**job, "target": {"macs": "0.1%"}}))
    command = [sys.executable, "-m", "curlfx", "run", str(file), f"out={tmp_path / 'run'}"]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=environment(rank, 2, port), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [one.communicate(timeout=PATIENCE)[1] for one in both]
    assert [one.returncode for one in both] == [1, 1]
    assert said[0].startswith("error: macs 0.1 % of dense cannot be reached")
    assert said[1].startswith("error: process 0: macs 0.1 % of dense cannot be reached")
    assert not (tmp_path / "run").exists()
