"""Two processes train as one does: the same weights, labels and figures; what differs is refused, nobody waits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from curlfx.errors import ConfigError, DataError, ModelError
from curlfx.recovery.batch_norm import check_visible
from curlfx.recovery.hardware import choose_device
from curlfx.recovery.processes import Processes, joined, processes
from tests.recovery import together

ROOT = Path(__file__).resolve().parents[2]
CLOSE = 1e-10
LABELS_CLOSE = 1e-6  # labels are float32


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun and accelerate launch set."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in own.items()}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, dict[str, Tensor]], dict[str, Any]]]:
    """What each of two processes found, and what it met beside."""
    folder, port = tmp_path_factory.mktemp("together"), free_port()
    command = [sys.executable, "-m", "tests.recovery.together", str(folder)]
    started = [subprocess.Popen(command, cwd=ROOT, env=environment(rank, 2, port)) for rank in range(2)]
    try:
        assert [one.wait(240) for one in started] == [0, 0]
    finally:
        for one in started:
            one.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(together.SAME))
def test_two_processes_end_as_one(name: str, both: list[Any]) -> None:
    wanted = together.SAME[name]()
    (first, _), (second, _) = both
    bound = LABELS_CLOSE if name == "refined" else CLOSE
    torch.testing.assert_close(first[name], wanted, rtol=bound, atol=bound)
    torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.slow
def test_stopped_and_gone_on_with(both: list[Any]) -> None:
    (found, others), (_, theirs) = both
    first, second = others["resumed"], theirs["resumed"]
    assert int(first.pop("CurlfxError: stop here")) == int(second.pop("CurlfxError: stop here")) == 1
    assert "resumed.pt" in first
    assert "resumed.pt" not in second
    for name, tensor in found["taught_and_mixed"].items():
        if name != "history":
            assert torch.equal(first[name], tensor), name
            assert torch.equal(second[name], tensor), name
    assert torch.equal(first["history"], second["history"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too few", "DataError: a batch of 1 images for 2 processes: want at least one for each; use fewer processes"),
        ("other batches", "CheckError: the first batch of epoch 1 differs between processes: process 0 has 'image "),
        ("other settings", "CheckError: the training differs between processes: process 0 has 'lr = 0.1', process 1 "),
        ("other networks", "CheckError: the network differs between processes: process 0 has 'first.weight (8,)"),
        ("instance norm", "ModelError: instance normalisation with running statistics: not known over several"),
        ("not finite", "CheckError: epoch 1, step 2 of 3: the loss is not finite at learning rate "),
    ],
)
def test_refused_by_both(name: str, message: str, both: list[Any]) -> None:
    for _, others in both:
        assert others["refusals"][name].startswith(message)


@pytest.mark.slow
def test_what_the_first_one_does(both: list[Any]) -> None:
    (_, first), (_, second) = both
    assert first["alone"] == second["alone"] == 1  # to itself it is the only one
    assert first["count"] == second["count"] == 2
    assert first["refusals"]["on the first"] == "CurlfxError: no"
    assert second["refusals"]["on the first"] == "CurlfxError: process 0: no"
    assert first["refusals"]["broken on the first"] == "CurlfxError: its own error"
    assert "process 0 stopped (ZeroDivisionError: half of nothing)" in second["refusals"]["broken on the first"]


@pytest.mark.slow
def test_lost_labels_are_refused_by_both(both: list[Any]) -> None:
    for rank, (_, others) in enumerate(both):
        prefix = "process 0: " * rank
        assert others["refusals"]["no labels"].startswith(f"WeightsError: {prefix}")
        assert "cannot read the soft labels" in others["refusals"]["no labels"]


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_ends_at_once() -> None:
    code = "import sys, tests.recovery.together as t; sys.exit(t.left_alone())"
    port = free_port()
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(rank, 2, port)) for rank in range(2)
    ]
    try:
        assert [one.wait(60) for one in started] == [0, 0]
    finally:
        for one in started:
            one.kill()


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_is_gone(both: list[Any]) -> None:
    assert both[0][1]["lost"].startswith("CheckError: process 0 of 2 cannot reach the others (")


def test_hidden_normalisations_are_refused() -> None:
    hidden = torch.nn.Sequential(torch.nn.ReLU(), torch.compile(torch.nn.BatchNorm2d(3)))
    with pytest.raises(ModelError, match="'1' is scripted or compiled, which several processes cannot share"):
        check_visible(hidden)
    check_visible(together.network())


@pytest.mark.parametrize("images", [3, 4, 7, 300])
def test_parts_of_a_batch(images: int) -> None:
    parts = [torch.arange(images)[Processes(rank, 3).share(images)] for rank in range(3)]
    assert torch.equal(torch.cat(parts), torch.arange(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(DataError, match="a batch of 2 images for 3 processes"):
        Processes(0, 3).share(2)


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as group:
        assert group == processes() == Processes(0, 1)
        value = torch.ones(2)
        group.add_up([value])
        assert value.tolist() == [1.0, 1.0]
        assert group.on_leader(lambda: 3) == 3


def test_an_environment_that_names_no_meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE = 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"), joined():
        pass


def test_accelerate_on_cpus_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with joined() as group:  # one process, as asked for
        assert group.count == 1
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match="through MPI alone, which curlfx does not read; use torchrun"), joined():
        pass


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    for module in ("processes", "hardware"):
        monkeypatch.setattr(sys.modules[f"curlfx.recovery.{module}"], "processes", lambda: Processes(1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert {str(choose_device(name)) for name in ("auto", "cuda", "cuda:1")} == {"cuda:1"}
    monkeypatch.delenv("LOCAL_RANK")  # of processes that a script started
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert str(choose_device("auto")) == "cuda:1"
    with pytest.raises(ConfigError, match="device = 'cuda:0': of several processes each has a GPU of its own"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="this machine has 1 CUDA devices; process 1 here would need"):
        choose_device("auto")
