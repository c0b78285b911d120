"""How the program speaks: help with examples, suggestions, JSON on request, silence on request, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import curlfx
from curlfx.cli import app
from tests.cli.conftest import Outcome, Program

NETWORKS = Path(__file__).parent.parent / "run" / "tiny_networks.py"
TINY = (f"{NETWORKS}:residual", "--shape", "1,8,8")
JOB = (f"model={NETWORKS}:residual", "limit=60", "importance=magnitude", "round_to=4", "train.epochs=1")
COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
def test_every_help_has_an_example(program: Program, command: tuple[str, ...]) -> None:
    done = program(*command, "--help")
    assert done.code == 0
    assert "..." not in done.out.partition("\nCommands:")[2]  # what is shown of each command is a whole sentence
    _, examples = done.out.split("For example:\n\n")
    assert examples.startswith(f"      curlfx {' '.join(command)}".rstrip())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["inspct"], "no command 'inspct'; did you mean 'inspect'?"),
        (["run", "model=resnet5O"], "torchvision:resnet50?"),
        (["run", "model=torchvison:resnet50"], "did you mean 'torchvision'?"),
        (["run", "model=torchvision:resnet5O"], "did you mean 'resnet50'"),
        (["run", "data=imagefoldr:here"], "did you mean 'imagefolder'?"),
        (["run", "importance=taylr"], "did you mean 'taylor'?"),
        (["run", "divergence=softmx"], "did you mean 'softmax'?"),
        (["run", "allocation=gobal"], "did you mean 'global'?"),
        (["run", "recovery.recipe=crul"], "did you mean 'curl'?"),
        (["run", "recovery.recipe=[overparam, crul]"], "did you mean 'curl'?"),
        (["run", "target.mac=50%"], "did you mean 'target.macs'?"),
        (["run", "preset=through"], "did you mean 'thorough'?"),
        (["run", "--presett", "fast"], "--preset"),
    ],
)
def test_misspelt_names(program: Program, arguments: list[str], hint: str) -> None:
    done = program(*arguments)
    assert done.code == 2
    assert hint in done.err


def test_the_version(program: Program) -> None:
    assert program("--version") == Outcome(0, f"curlfx {curlfx.__version__}\n", "")


@pytest.mark.slow
def test_results_as_json(program: Program) -> None:
    assert program("score", *TINY, "--importance", "magnitude", "--json").out.startswith('{\n  "file": "scores.json"')
    planned = json.loads(program("plan", *TINY, "--round-to", "4", "--json").out)
    assert planned["after"]["macs"] <= planned["before"]["macs"] / 2
    assert set(planned["widths"]) == {"stem.weight", "inner.weight"}
    slimmed = program("slim", *TINY, "plan.json", "--json")
    assert json.loads(slimmed.out)["after"] == planned["after"]
    assert slimmed.err == "note: no weights were given, these are random ones\n"
    quiet = program("--log-level", "error", "slim", *TINY, "plan.json", "--json")
    assert (json.loads(quiet.out), quiet.err) == (json.loads(slimmed.out), "")
    verified = json.loads(program("verify", *TINY, "plan.json", "--json").out)
    assert verified["passed"] is True
    assert [check["name"] for check in verified["checks"]] == ["gated vs slim, float64"]


@pytest.mark.slow
def test_a_run_as_json_in_silence(program: Program) -> None:
    done = program("--log-level", "error", "run", *JOB, "recovery.epochs=0", "bench={rounds: 2, runs: 2}", "--json")
    assert (done.code, done.err) == (0, "")
    summary = json.loads(done.out)
    assert summary["directory"] == "runs/residual-1"
    assert json.loads(program("report", "runs/residual-1", "--json").out) == summary
    verified = json.loads(program("verify", "runs/residual-1", "--json").out)
    assert verified["files"]["missing"] == []
    assert verified["on_record"].startswith("passed")
    Path("runs/residual-1/slim.onnx").unlink()
    spoiled = program("verify", "runs/residual-1", "--json")
    assert spoiled.code == 1
    found = json.loads(spoiled.out)
    assert (found["files"]["missing"], found["checks"], found["passed"]) == (["slim.onnx"], None, False)


@pytest.mark.slow
def test_explain_writes_nothing(program: Program) -> None:
    done = program("run", *JOB, "--explain", "--preset", "fast")
    assert done.code == 0
    assert "channels   32 in 2 coupling groups may go, 10 stay whatever happens\n" in done.out
    assert "directory  runs/residual-1 (nothing was written)\n" in done.out
    assert "2 epochs of 1 steps, 2 in all" in done.out
    assert list(Path.cwd().iterdir()) == []
    assert json.loads(program("train", *JOB, "--explain", "--json").out)["steps"][0]["name"] == "train"
    refused = program("run", "resume=runs/residual-1", "--explain")
    assert refused.code == 2
    assert "--explain: resume=runs/residual-1" in refused.err


def test_the_shell_completes_commands() -> None:
    asked = {"_CURLFX_COMPLETE": "complete_bash", "COMP_WORDS": "curlfx insp", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "curlfx"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "inspect"
