"""Commands that take the folder of a saved network where they take MODEL."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import curlfx
from curlfx.run.saved import FILES, MANIFEST
from tests.cli.conftest import Program
from tests.cli.test_commands import NETWORKS, TINY

MODEL = f"{NETWORKS}:residual"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slim network, and beside its folder the plan of another cut."""
    folder = tmp_path_factory.mktemp("saved")
    traced = curlfx.trace(curlfx.load_model(MODEL), (torch.randn(2, 1, 8, 8),))
    coupling = curlfx.couple(traced)
    scores = curlfx.score(traced, coupling, importance="magnitude")
    plan = curlfx.plan(traced, coupling, scores, target={"macs": "60%"}, round_to=4)
    slim = curlfx.slim(traced, plan)
    curlfx.save(slim, folder / "net", plan=plan, model=MODEL)
    again = curlfx.couple(slim)
    scores = curlfx.score(slim, again, importance="magnitude")
    curlfx.plan(slim, again, scores, target={"macs": "70%"}, round_to=2).save(folder / "again.json")
    return folder


@pytest.mark.slow
def test_slim_into_a_folder(program: Program) -> None:
    assert program("score", *TINY, "--importance", "magnitude", "--ignore", "stem").code == 0
    assert program("plan", *TINY, "--ignore", "stem", "--target", "macs=80%", "--round-to", 1).code == 0
    done = program("slim", *TINY, "plan.json", "--out", "net")
    assert (done.code, done.out.splitlines()[-1]) == (0, "net")
    assert {path.name for path in Path("net").iterdir()} == {MANIFEST, *FILES}
    network = curlfx.load("net")
    assert network.parameter("stem.weight").shape[0] == 16
    assert network.parameter("inner.weight").shape[0] < 16


@pytest.mark.slow
def test_absorbed_biases_are_in_the_weights(program: Program) -> None:
    Path("net.py").write_text(CHAIN)
    options = ("net.py:chain", "--shape", "1,8,8")
    assert program("plan", *options, "--width", "0.weight=2").code == 0
    for way in ("none", "exact"):
        assert program("slim", *options, "plan.json", "--out", way, "--absorb-bias", way).code == 0
    plain, absorbed = (curlfx.load(way).module.state_dict() for way in ("none", "exact"))
    assert list(plain) == list(absorbed)
    assert [name for name in plain if not torch.equal(plain[name], absorbed[name])] == ["2.bias"]
    lost = torch.tensor([0.5, 0.5, 0.5]).sum()  # sigmoid(0) of three channels, read with weight 1
    torch.testing.assert_close(absorbed["2.bias"] - plain["2.bias"], lost.expand(4))
    assert program("slim", *options, "plan.json", "--absorb-bias", "all").code == 2
    assert program("verify", "exact").code == 0


CHAIN = """
import torch
from torch import nn

def chain():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 1), nn.Sigmoid(), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(256, 3))
    nn.init.zeros_(net[0].bias)
    nn.init.ones_(net[2].weight)
    return net
"""


@pytest.mark.slow
def test_a_folder_in_place_of_a_model(program: Program, saved: Path) -> None:
    done = program("verify", saved / "net")
    assert done.code == 0
    assert "saved graph vs torch" in done.out
    done = program("export", saved / "net", "--out", "slim.onnx")
    assert (done.code, done.err) == (0, "")
    assert program("verify", saved / "net", saved / "again.json").code == 0
    assert program("slim", saved / "net", saved / "again.json", "--out", "slimmer").code == 0
    before, after = curlfx.load(saved / "net", graph=True), curlfx.load("slimmer", graph=True)
    assert after.parameter("inner.weight").numel() < before.parameter("inner.weight").numel()
    shutil.copy("slim.onnx", "slimmer")
    assert "slimmer/slim.onnx" in program("bench", "slimmer", "--rounds", 2, "--runs", 1).out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("export", "{}", "--classes", 3), "--classes: {} is a saved network, which has its own; leave the option out"),
        (("export", "{}", "--shape", "1,8,8"), "--shape: {} is a saved network"),
        (("bench", "{}"), "bench {}: no dense.onnx or slim.onnx there; write one with curlfx export {}"),
        (("export", "."), "holds no saved network: want network.json"),
        (("verify", "."), "want a run directory"),
    ],
)
def test_bad_input(program: Program, saved: Path, command: tuple[object, ...], message: str) -> None:
    folder = str(saved / "net")
    done = program(*[folder if part == "{}" else part for part in command])
    assert done.code == 2
    assert message.replace("{}", folder) in done.err


@pytest.mark.slow
def test_a_damaged_file(program: Program, saved: Path) -> None:
    shutil.copytree(saved / "net", "net")
    Path("net/slim.pt2").write_bytes(b"other")
    for command in (("export", "net"), ("verify", "net")):
        done = program(*command)
        assert done.code == 2
        assert "net/slim.pt2 is not the file that was saved (its hash differs)" in done.err
