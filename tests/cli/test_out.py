"""What cannot be written is refused before the work: no network is opened, no image read, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import onnx
import pytest
from onnx import TensorProto, helper

import curlfx.sources
from curlfx.cli import decide, look, make
from curlfx.errors import OutputError
from curlfx.files import require_writable
from curlfx.run.saved import require_free
from tests.cli.conftest import Program

COMMANDS = (
    ("score", "curlfx:digits", "--importance", "magnitude", "--out"),
    ("plan", "curlfx:digits", "--width", "a=1", "--out"),
    ("slim", "curlfx:digits", "plan.json", "--out"),
    ("export", "curlfx:digits", "--out"),
    ("inspect", "curlfx:digits", "--drawing"),
    ("quantize", "net.onnx", "--data", "digits", "--out"),
)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to work fails."""

    def work(*_: object, **__: object) -> NoReturn:
        raise AssertionError("this work is for nothing")

    for place in (decide, look, make):
        monkeypatch.setattr(place, "open_network", work)
    monkeypatch.setattr(curlfx.sources, "load_data", work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
@pytest.mark.parametrize(
    ("folder", "fault"),
    [("nowhere", "No such file or directory"), ("file", "Not a directory"), ("/proc", "No such file or directory")],
)
def test_a_folder_that_cannot_be_written(program: Program, command: tuple[str, ...], folder: str, fault: str) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), "net.onnx")
    Path("file").write_text("mine")
    before = sorted(Path.cwd().iterdir())
    out = f"{folder}/found.safetensors"
    done = program(*command, out)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: cannot write {out}: {fault}; name another folder\n"
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.usefixtures("no_work")
def test_a_folder_in_the_way(program: Program) -> None:
    Path("found.json").mkdir()
    done = program("plan", "curlfx:digits", "--out", "found.json")
    assert (done.code, done.err) == (2, "error: cannot write found.json: it is a folder or a device; name a file\n")


@pytest.mark.usefixtures("no_work")
def test_a_folder_of_others(program: Program) -> None:
    Path("net").mkdir()
    Path("net/precious").write_text("mine")
    done = program("slim", "curlfx:digits", "plan.json", "--out", "net")
    assert (done.code, done.err) == (2, "error: net holds other files (precious); name another folder\n")


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    require_writable(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("old")
    require_writable(tmp_path / "old.json")
    require_free(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_saved_network_takes_no_file_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("mine")
    for folder in (tmp_path / "net", tmp_path / "net" / "deeper"):
        with pytest.raises(OutputError, match=r"cannot write .*: Not a directory; name another folder"):
            require_free(folder)
