"""Bad input: one clear error that names what is wrong, exit 2, and nothing written."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from curlfx.run.directory import FORMAT, RunDirectory
from tests.cli.conftest import Outcome, Program

NETWORKS = Path(__file__).parent.parent / "run" / "tiny_networks.py"
SMALL = ("limit=20", "train.epochs=0", "recovery.epochs=0", "importance=magnitude")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.mkdir, (Path("boom"),))


def refused(outcome: Outcome, *texts: str) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0]
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["a.yaml", "b.yaml"], ["'b.yaml'", "want key=value"]),
        (["recovery.epoch=3"], ["did you mean 'recovery.epochs'?"]),
        (["recovery.lr=0"], ["recovery.lr = 0: want a number > 0"]),
        (["importance=kll"], ["importance = kll", "did you mean 'kl'?"]),
        (["device=cuda:77"], ["cuda:77"]),
        (["model=resnet18"], ["resnet18"]),
        (["model=curlfx:digit"], ["curlfx:digit", "digits"]),
        (["model=nowhere.py:network"], ["nowhere.py"]),
        ([f"model={NETWORKS}:residul"], ["residul", "did you mean 'residual'"]),
        ([f"model={NETWORKS}:broken"], ["no network today", "tiny_networks.py"]),
        ([f"model={NETWORKS}:leaving"], ["its factory failed: SystemExit", "tiny_networks.py"]),
        ([f"model={NETWORKS}:not_a_number"], ["head.bias holds NaN"]),
        (["bench.provider=fpga"], ["provider = 'fpga'", "CPUExecutionProvider"]),
        (["bench.threads=100000"], ["threads = 100000: want 0"]),
        (["threads=100000"], ["threads = 100000: want 0"]),
        (["data=imagefolder:"], ["want imagefolder:DIR"]),
        ([f"model={NETWORKS}:residual", "weights=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["data=imagefolder:nowhere"], ["imagefolder:nowhere"]),
        (["data=digit"], ["digit", "did you mean"]),
        ([f"model={NETWORKS}:colour"], ["(1, 8, 8)"]),
        ([f"model={NETWORKS}:seven_classes"], ["10 classes", "7"]),
        ([f"model={NETWORKS}:undecided"], ["tiny_networks.py"]),
        (["target.macs=0%"], ["macs = 0%", "above 0% and at most 100%"]),
        (["target.macs=150%"], ["macs = 150%", "above 0% and at most 100%"]),
        (["target.macs=many"], ["macs = 'many'"]),
        (["target.flops=50%"], ["unknown key 'target.flops'"]),
        ([f"model={NETWORKS}:residual", "target.macs=1G"], ["macs = 1G", "at most the dense network's"]),
        ([f"model={NETWORKS}:residual", "ignored_layers=stm"], ["stm", "did you mean"]),
    ],
)
def test_run_refuses(program: Program, arguments: list[str], texts: list[str]) -> None:
    refused(program("run", *SMALL, *arguments), *texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["gradual.interval=0"], ["gradual.interval = 0", "curlfx run"]),
        (["gradual.last=99"], ["gradual.last = 99", "train.epochs = 8"]),
        (["gradual.amount=-3"], ["gradual.amount = -3", "a whole number of channels"]),
        (["train.epochs=0"], ["gradual", "train.epochs=0"]),
        (["gradual.phisical=true"], ["did you mean 'gradual.physical'?"]),
    ],
)
def test_train_refuses(program: Program, arguments: list[str], texts: list[str]) -> None:
    refused(program("train", "limit=20", *arguments), *texts)


def test_nothing_to_resume(program: Program) -> None:
    refused(program("run", "resume=nowhere"), "resume=nowhere: want a run directory")


def test_a_damaged_run_directory(program: Program, tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunDirectory.create(run, "digits", {}).close()
    (run / "summary.json").write_text("{}")
    refused(program("report", run), "summary.json: key 'model' is missing")
    (run / "state.json").write_text(json.dumps({"format": FORMAT, "done": {"export": {}}, "seconds": {"export": 1}}))
    for command in (("verify", run), ("report", run), ("run", f"resume={run}")):
        refused(program(*command), "state.json", "'export' without 'accuracy'", "start a new run")


def test_weights_of_another_shape(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"stem.weight": torch.zeros(3, 3)}, file)
    refused(program("run", f"model={NETWORKS}:residual", f"weights={file}"), "weights.safetensors")


def test_a_pickle_with_code_in_it(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with file.open("wb") as stream:
        pickle.dump({"weight": Bomb()}, stream)
    refused(program("run", f"model={NETWORKS}:residual", f"weights={file}"), "weights.pth")
    torch.save({"weight": Bomb()}, file)
    refused(program("run", f"model={NETWORKS}:residual", f"weights={file}"), "weights.pth", "would execute code")


def test_a_folder_with_a_damaged_image(program: Program, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "0.png")
    (tmp_path / "pets" / "test" / "dog" / "0.png").write_bytes(b"no image")
    refused(
        program("run", f"model={NETWORKS}:residual", f"data=imagefolder:{tmp_path / 'pets'}", "train.epochs=0"), "0.png"
    )


def test_a_target_out_of_reach_is_a_failed_check(program: Program) -> None:
    outcome = program("run", f"model={NETWORKS}:residual", "target.macs=1%", *SMALL)
    assert outcome.code == 1
    assert "macs 1 % of dense cannot be reached" in outcome.err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("out", ["/proc/curlfx/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written(program: Program, out: str) -> None:
    refused(program("run", f"model={NETWORKS}:residual", f"out={out}", *SMALL), "cannot write /")


def test_a_folder_with_something_in_it(program: Program, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    refused(program("run", f"model={NETWORKS}:residual", f"out={tmp_path}", *SMALL), "the folder is not empty")
    refused(
        program("run", "model=none.py:network", f"out={tmp_path}"), "the folder is not empty"
    )  # before it is loaded
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.slow
def test_a_full_disk(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    job = ("run", f"model={NETWORKS}:residual", *SMALL)
    refused(program(*job), "cannot write", "No space left on device")
    refused(program(*job, f"out={tmp_path / 'new' / 'run'}"), "cannot write", "No space left on device")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["inspect", "nothing"], ["nothing"]),
        (["inspect", f"{NETWORKS}:residual"], ["give --shape C,H,W"]),
        (["inspect", f"{NETWORKS}:residual", "--shape", "8,8"], ["--shape 8,8: want three whole numbers"]),
        (["inspect", f"{NETWORKS}:undecided", "--shape", "1,8,8"], ["tiny_networks.py"]),
        (["inspect", "curlfx:digits", "--ignore", "stage9"], ["stage9"]),
        (["explain", "curlfx:digits", "conv1", "conv9.weight"], ["'conv9.weight' is no site", "did you mean"]),
        (["explain", "curlfx:digits", "conv1", "head"], ["share no coupled channel"]),
        (["score", "curlfx:digits"], ["pass batches of training images"]),
        (["score", "curlfx:digits", "--importance", "kll"], ["did you mean 'kl'"]),
        (["plan", "curlfx:digits"], ["scores.json", "curlfx score"]),
        (["plan", "curlfx:digits", "--target", "macs"], ["--target macs: want KEY=AMOUNT"]),
        (["slim", "curlfx:digits", "plan.json"], ["plan.json"]),
        (["verify", "nowhere"], ["no such folder"]),
        (["verify", "."], ["want a run directory"]),
        (["bench", "nothing.onnx"], ["nothing.onnx"]),
        (["bench", "nothing.onnx", "--plot", "a.txt"], ["plot a.txt: want a name that ends in .svg, .png, .pdf"]),
        (["bench", "nothing.onnx", "--plot", "no/a.svg"], ["cannot write no/a.svg: No such file"]),
        (["report", "nowhere"], ["want a run directory"]),
        (["export", "curlfx:digits", "--weights", "nothing.pth"], ["nothing.pth"]),
    ],
)
def test_other_commands_refuse(program: Program, arguments: list[str], texts: list[str]) -> None:
    refused(program(*arguments), *texts)


@pytest.mark.parametrize("arguments", [["inspect"], ["nonsense"], ["run", "--nonsense"], ["bench"]])
def test_usage_errors_exit_with_2(program: Program, arguments: list[str]) -> None:
    outcome = program(*arguments)
    assert outcome.code == 2
    assert "Usage: " in outcome.err
