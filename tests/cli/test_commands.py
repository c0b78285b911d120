"""The commands on small networks: what they print and what they write."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from curlfx.cli import job as job_commands
from curlfx.run.settings import load_config
from tests.cli.conftest import Program

NETWORKS = Path(__file__).parent.parent / "run" / "tiny_networks.py"
TINY = (f"{NETWORKS}:residual", "--shape", "1,8,8")
JOB = (
    f"model={NETWORKS}:residual",
    "limit=60",
    "importance=magnitude",
    "round_to=4",
    "train.epochs=1",
    "recovery.epochs=1",
    "bench={rounds: 2, runs: 2}",
)


@pytest.mark.slow
def test_inspect(program: Program) -> None:
    done = program("inspect", *TINY)
    assert done.code == 0
    assert done.out.splitlines()[1:] == [
        "2 coupling groups, 32 channels, 82.8% of what layers compute",
        "group         width  members  blocks  MACs/channel  params/channel  notes",
        "stem.weight      16        9                  19 k             310",
        "inner.weight     16        3                18.4 k             289",
        "",
        "frozen: 10 channels of 1 layers",
        "reason                    channels  layers  (first) node  where",
        "an output of the network        10       1  output        head.weight[0]",
    ]


@pytest.mark.slow
def test_inspect_as_json(program: Program) -> None:
    found = json.loads(program("inspect", *TINY, "--json", "--ignore", "stem").out)
    assert [group["id"] for group in found["groups"]] == ["inner.weight"]
    assert found["groups"][0]["members"][:3] == ["inner.weight[0]", "inner.bias[0]", "outer.weight[1]"]
    assert found["frozen"][0]["reason"] == "frozen by the user (stem)"
    assert found["macs"] == 64 * 9 * (16 + 2 * 256) + 160
    assert found["free_share"] == pytest.approx(16 / (3 * 16 + 10))
    assert found["unsupported"] == []


UNKNOWN = """
import torch

class Unknown(torch.nn.Sequential):
    def forward(self, x):
        x = self[0](x)
        return self[1](torch.linalg.matrix_exp(x))

def network():
    return Unknown(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1))
"""


def test_inspect_names_ops_without_a_rule(program: Program) -> None:
    Path("net.py").write_text(UNKNOWN)
    done = program("inspect", "net.py:network", "--shape", "1,8,8")
    assert done.code == 0
    assert re.search(r"aten\.linalg_matrix_exp\.default +linalg_matrix_exp +elsewhere/net\.py:7", done.out)
    assert re.search(
        r"no rule for aten\.linalg_matrix_exp\.default +4 +1 +linalg_matrix_exp .*0\.weight\[0\]", done.out
    )


@pytest.mark.slow
def test_inspect_draws(program: Program) -> None:
    done = program("inspect", *TINY, "--drawing", "net.svg")
    assert done.out.splitlines()[-1] == "net.svg"
    assert Path("net.svg").read_text().startswith("<svg")
    refused = program("inspect", *TINY, "--drawing", "missing/net.svg")
    assert refused.code == 2
    assert "missing" in refused.err


@pytest.mark.slow
def test_explain_names_the_line(program: Program) -> None:
    done = program("explain", *TINY, "stem", "outer")
    assert done.code == 0
    assert "add" in done.out
    assert "tiny_networks.py:" in done.out
    steps = json.loads(program("explain", *TINY, "stem", "outer", "--json").out)
    assert [(step["a"], step["b"]) for step in steps] == [("stem.weight[0]", "outer.weight[0]")]


@pytest.mark.slow
def test_explain_one_layer(program: Program) -> None:
    done = program("explain", *TINY, "outer", "--ignore", "stem")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "outer.weight[0]: makes 16 channels"
    assert lines[1].startswith("  16 stay: frozen by the user (stem)  (at stem_weight")
    assert lines[2].startswith("    tied to stem.weight[0]  by add  run/tiny_networks.py:")
    assert lines[lines.index("") + 1] == "outer.weight[1]: reads 16 channels"
    assert lines[-3].startswith("  16 in group inner.weight: width 16, one channel is 18.4 k MACs, 289 parameters")
    assert lines[-2:] == ["    with inner.weight[0]", "    with inner.bias[0]"]
    made = json.loads(program("explain", *TINY, "outer.weight[0]", "--ignore", "stem", "--json").out)
    assert [(pin["width"], pin["reason"]) for pin in made[0]["frozen"]] == [(16, "frozen by the user (stem)")]


def test_relevance_is_given_the_classes(program: Program) -> None:
    import curlfx
    from curlfx.run.subject import proxy_batches, scoring_batches

    asked = ("--importance", "relevance", "--data", "digits", "--proxy-images", "40")
    assert program("score", *TINY, *asked, "--seed", "3").code == 0
    found = json.loads(Path("scores.json").read_text())
    data = curlfx.load_data("digits")
    (batch,) = scoring_batches(data, 40, 3, "relevance")
    assert batch[1].shape == (40,)
    (plain,) = scoring_batches(data, 40, 3, "kl")
    assert torch.equal(plain, proxy_batches(data, 40, 3)[0])
    assert torch.equal(plain, batch[0])
    assert found["details"]["images"] == 40
    assert 0 < found["details"]["accuracy_permille"] < 1000  # of predictions it were 1000


@pytest.mark.slow
def test_from_scores_to_a_verified_file(program: Program) -> None:
    weights = Path("dense.safetensors")
    from safetensors.torch import save_model

    from tests.run.tiny_networks import Residual

    save_model(Residual(), str(weights))
    assert program("score", *TINY, "--importance", "magnitude", "--weights", weights).code == 0
    planned = program("plan", *TINY, "--target", "macs=50%", "--round-to", "4")
    assert planned.code == 0
    assert planned.out.splitlines()[-1] == "plan.json"
    assert program("slim", *TINY, "plan.json", "--weights", weights).code == 0
    kept = json.loads(Path("plan.json").read_text())["keep"]
    assert load_file("slim.safetensors")["inner.weight"].shape[0] == len(kept["inner.weight"])
    exported = program("export", *TINY, "--plan", "plan.json", "--slim-weights", "slim.safetensors", "--out", "a.onnx")
    assert exported.code == 0
    assert exported.err == ""
    assert program("export", *TINY, "--weights", weights, "--out", "b.onnx").code == 0
    good = program("verify", *TINY, "plan.json", "--weights", weights, "--onnx", "a.onnx")
    assert good.code == 0
    assert good.out.count(" ok") == 3
    bad = program("verify", *TINY, "plan.json", "--weights", weights, "--onnx", "b.onnx")
    assert bad.code == 1
    assert bad.out.count("FAILED") == 2
    assert bad.err.startswith("error: torch vs onnx")
    timed = program("bench", "b.onnx", "a.onnx", "--rounds", "2", "--runs", "2", "--json")
    assert [entry["path"] for entry in json.loads(timed.out)["entries"]] == ["b.onnx", "a.onnx"]
    assert program("bench", "b.onnx", "--rounds", "2").out.startswith("file")


def test_run_verify_report(program: Program) -> None:
    done = program("run", *JOB)
    assert done.code == 0
    assert "speed-up" in done.out
    assert "verification   passed" in done.out
    assert "run directory  runs/residual-1" in done.out
    verified = program("verify", "runs/residual-1")
    assert verified.out.count(" ok") == 6
    assert " files as the run wrote them\nverification on record: passed (gated vs slim" in verified.out
    page = Path("runs/residual-1/report.html")
    page.unlink()
    again = program("report", "runs/residual-1")
    assert again.out == done.out
    assert page.exists()
    resumed = program("run", "resume=runs/residual-1")
    assert (resumed.code, resumed.out) == (0, done.out)
    Path("runs/residual-1/slim.onnx").unlink()
    Path("runs/residual-1/plan.json").write_text("{}")
    Path("runs/residual-1/mine.txt").touch()
    spoiled = program("verify", "runs/residual-1")
    assert spoiled.code == 1
    assert spoiled.out.splitlines()[:3] == ["missing  slim.onnx", "changed  plan.json", "extra  mine.txt"]
    assert spoiled.err.startswith("error: runs/residual-1 is not what its run left: missing: slim.onnx; changed: plan")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal has it: started in the background, the tests themselves ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(
    program: Program, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals
) -> None:
    from curlfx.run import deployment

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), sign)

    with monkeypatch.context() as patch:
        patch.setattr(deployment, "write_onnx", interrupt)
        done = program("run", *JOB)
    assert done.code == 130
    assert done.err.endswith("interrupted\nto go on with this run: curlfx run resume=runs/residual-1\n")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert program("run", "resume=runs/residual-1").code == 0


def test_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("seed: 4\n")
    assert job_commands.split_arguments([str(file), "seed=5"]) == (file, ["seed=5"])
    assert load_config(*job_commands.split_arguments([str(file), "seed=5"])).seed == 5


def test_debug_shows_the_traceback(program: Program) -> None:
    from curlfx.errors import ConfigError

    with pytest.raises(ConfigError):
        program("--debug", "run", "seed=-1")


@pytest.mark.slow
def test_python_m_is_the_same_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "curlfx", "run", "recovery.epoch=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown key 'recovery.epoch'; did you mean 'recovery.epochs'?\n"


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from curlfx.cli import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
