"""The run directory: whole files or none, one run at a time, nothing left behind when it cannot be made."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import NoReturn

import pytest

from curlfx.errors import CheckError, OutputError
from curlfx.files import written
from curlfx.run.directory import FORMAT, RunDirectory, planned_path, write_json, write_text


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def python(code: str, argument: Path) -> str:
    """Output of ``code`` in a process of its own."""
    command = [sys.executable, "-c", dedent(code), str(argument)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def state(done: object = None, seconds: object = None, form: int = FORMAT) -> str:
    """Text of a ``state.json``."""
    filled = {} if done is None else done, {} if seconds is None else seconds
    return json.dumps({"format": form, "done": filled[0], "seconds": filled[1]})


def full_disk(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_written_renames_on_success_only(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), written(tmp_path / "a.txt") as temporary:
        temporary.write_text(f"half {1 // 0}")
    assert listing(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    write_text(tmp_path / "a.txt", "new")
    assert listing(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"accuracy": float("nan")})
    assert listing(tmp_path) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: No space left on device; free some space"):
        write_text(tmp_path / "a.txt", "text")
    assert listing(tmp_path) == []


def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path: Path) -> None:
    """A real failing write, in a process of its own: the kernel cuts files at 1000 bytes."""
    code = """
        import resource, sys
        from pathlib import Path
        from curlfx.errors import OutputError
        from curlfx.run.directory import write_text
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_text(Path(sys.argv[1]) / "a.txt", "x" * 5000)
        except OutputError as error:
            print(error)
    """
    assert "a.txt: File too large" in python(code, tmp_path)
    assert listing(tmp_path) == []


def test_names_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        with RunDirectory.create(None, "digits", {}) as directory:
            assert directory.path == Path("runs") / f"digits-{number}"
    (tmp_path / "runs" / "digits-7").mkdir()
    (tmp_path / "runs" / "digits-x").mkdir()
    with RunDirectory.create(None, "digits", {}) as directory:
        assert directory.path.name == "digits-8"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"the folder is not empty; name another one$"):
        RunDirectory.create(tmp_path, "digits", {})
    assert listing(tmp_path) == ["file"]
    RunDirectory.create(tmp_path / "run", "digits", {}).close()
    with pytest.raises(OutputError, match=r"name another one, or continue it with resume=.*run$"):
        RunDirectory.create(tmp_path / "run", "digits", {})


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .*file.*; name another folder$"):
        RunDirectory.create(tmp_path / "file" / "run", "digits", {})
    assert listing(tmp_path) == ["file"]


def test_nothing_stays_of_a_directory_that_could_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        RunDirectory.create(tmp_path / "a" / "b", "digits", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="No space left"):
        RunDirectory.create(None, "digits", {})
    assert listing(tmp_path) == []


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", "digits", {"seed": 1}):
        with pytest.raises(OutputError, match="another run is working here"):
            RunDirectory.reopen(tmp_path / "run")
        code = """
            import sys
            from pathlib import Path
            from curlfx.run.directory import RunDirectory
            try:
                RunDirectory.reopen(Path(sys.argv[1]))
            except Exception as error:
                print(error)
        """
        assert "another run is working here" in python(code, tmp_path / "run")
    directory, settings = RunDirectory.reopen(tmp_path / "run")
    directory.close()
    assert settings == {"seed": 1}


def test_finished_stages_and_leftovers(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", "digits", {}) as directory:
        directory.record("train", {"epochs": 2, "accuracy": 0.5}, 1.5)
        directory.log("hello")
    leftover = tmp_path / "run" / ".slim.onnx.123.partial"
    leftover.write_text("half a file of a killed process")
    directory, _ = RunDirectory.reopen(tmp_path / "run")
    with directory:
        assert directory.done == {"train": {"epochs": 2, "accuracy": 0.5}}
        assert directory.seconds == {"train": 1.5}
    assert not leftover.exists()
    assert (tmp_path / "run" / "log.txt").read_text().endswith("  hello\n")


def test_a_result_that_is_not_finite_is_not_recorded(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", "digits", {}) as directory:
        with pytest.raises(CheckError, match="stage 'verify' ended with a number that is not finite"):
            directory.record("verify", {"checks": [{"error": float("inf")}]}, 1.0)
        assert directory.done == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "Expecting property name"),
        ("[]", "it holds a list, want keys with values"),
        ("{}", f"format None, this version reads {FORMAT}"),
        (state(form=99), f"format 99, this version reads {FORMAT}"),
        (state([]), r"'done': want stages with values, found \[\]"),
        (state({}, 3), "'seconds': want stages with values, found 3"),
        (state({"paint": {}}), "'paint' is no stage"),
        (state({"export": {}}), "'done' has stage 'export' without 'accuracy'"),
        (state({"train": {}, "trace": {}}), "'done' has stage 'trace' without 'dense'"),
        (state({"train": 1}), r"done\['train'\]: want keys with values, found 1"),
        (state({"train": {}}), r"seconds\['train'\]: want a number, found None"),
        (state({"train": {}}, {"train": float("inf")}), "Infinity is no number of JSON"),
        (
            state({"train": {}}, {"train": 1}).replace(": 1}", ": 1e999}"),
            r"seconds\['train'\]: want a number, found inf",
        ),
        (state({"train": {}}, {"train": 1}), r"done\['train'\]\.epochs: missing"),
        (
            state({"train": {"epochs": "2"}}, {"train": 1}),
            r"done\['train'\]\.epochs = '2': input should be a valid integer",
        ),
    ],
)
def test_a_damaged_record(tmp_path: Path, text: str, fault: str) -> None:
    RunDirectory.create(tmp_path / "run", "digits", {}).close()
    (tmp_path / "run" / "state.json").write_text(text)
    with pytest.raises(OutputError, match=rf"state\.json: cannot read its record \({fault}.*\); restore the file, or"):
        RunDirectory.reopen(tmp_path / "run")
    (tmp_path / "run" / "state.json").write_text(state({"train": {"epochs": 0}}, {"train": 1.5}))
    RunDirectory.reopen(tmp_path / "run")[0].close()


def test_resume_wants_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="want a run directory"):
        RunDirectory.reopen(tmp_path)
    assert listing(tmp_path) == []


def test_a_configuration_that_is_no_mapping(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", "digits", {}).close()
    (tmp_path / "run" / "config.yaml").write_text("- 1\n")
    with pytest.raises(OutputError, match=r"config\.yaml holds list, want keys with values"):
        RunDirectory.reopen(tmp_path / "run")


def test_a_folder_that_another_run_took_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes found it empty; the slower one removes nothing of the other's."""
    out = tmp_path / "run"
    first = RunDirectory.create(out, "digits", {"seed": 1})
    before = listing(out)
    monkeypatch.setattr("curlfx.run.directory._make", lambda folder: ([], folder))
    with pytest.raises(OutputError, match="another run is working here"):
        RunDirectory.create(out, "digits", {"seed": 2})
    first.close()
    with pytest.raises(OutputError, match="another run was made here meanwhile"):
        RunDirectory.create(out, "digits", {"seed": 2})
    assert listing(out) == before
    assert RunDirectory.reopen(out)[1] == {"seed": 1}


@pytest.mark.parametrize(
    "left", [[".lock"], [".lock", "config.yaml"], [".lock", ".state.json.7.partial", "config.yaml"]]
)
def test_a_process_killed_while_it_made_the_folder_leaves_it_free(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("")
    with RunDirectory.create(tmp_path, "digits", {"seed": 2}):
        assert listing(tmp_path) == [".lock", "checkpoints", "config.yaml", "state.json"]


@pytest.mark.parametrize("left", [["config.yaml"], [".lock", "config.yaml", "mine"], [".lock", "checkpoints/a.pt"]])
def test_other_files_are_never_taken_for_such_leftovers(tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in left:
        (tmp_path / name).write_text("")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="the folder is not empty"):
        RunDirectory.create(tmp_path, "digits", {})
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1' + "0" * 5000 + "}", "Exceeds the limit"),
        (" " * (64 * 2**20 + 1), "larger than 64 MiB"),
    ],
    ids=["deep", "digits", "large"],
)
def test_a_record_that_is_meant_to_overwhelm(tmp_path: Path, text: str, fault: str) -> None:
    RunDirectory.create(tmp_path / "run", "digits", {}).close()
    (tmp_path / "run" / "state.json").write_text(text)
    with pytest.raises(OutputError, match=rf"state\.json: cannot read its record \(.*{fault}"):
        RunDirectory.reopen(tmp_path / "run")


@pytest.mark.parametrize("name", [".lock", "log.txt", "checkpoints", "checkpoints/dense.safetensors"])
def test_a_link_where_a_run_would_write_is_refused(tmp_path: Path, name: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    RunDirectory.create(run, "digits", {}).close()
    elsewhere.write_text("mine")
    if name == "checkpoints":
        (run / name).rmdir()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=rf"{name}: a link, which is not followed"):
        RunDirectory.reopen(run)
    assert elsewhere.read_text() == "mine"


def test_a_planned_folder_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(OutputError, match=r"cannot write .*: Permission denied; name another folder$"):
        planned_path(tmp_path, "digits")
