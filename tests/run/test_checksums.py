"""The files of a run beside the checksums in its summary: missing, changed and extra ones are named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from curlfx.errors import CheckError, OutputError, VerificationError
from curlfx.run.checksums import NO_PLAIN_FILE, UNRECORDED, checksums, compare
from curlfx.run.directory import RunDirectory, looked_at
from curlfx.run.recheck import check_record, recheck
from curlfx.run.runner import RunResult


@pytest.fixture
def copied(finished: RunResult, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoiled."""
    return Path(shutil.copytree(finished.directory, tmp_path / "run"))


def rewritten(folder: Path, **changes: object) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))


@pytest.mark.slow
def test_every_file_has_a_checksum(finished: RunResult) -> None:
    folder = finished.directory
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(finished.summary["files"]) == there - set(UNRECORDED)
    assert {"slim.onnx", "slim.safetensors", "config.yaml", "checkpoints/dense.safetensors"} <= there
    assert finished.summary["files"]["plan.json"] == hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest()


def test_the_files_of_a_run_are_as_it_left_them(finished: RunResult) -> None:
    record = check_record(finished.directory)
    assert record is not None
    assert record.files is not None
    assert record.files.passed
    assert record.files.same == len(finished.summary["files"])
    assert record.verdict.startswith("passed (gated vs slim")
    record.require()


def test_files_that_are_not_as_they_were_are_named(copied: Path) -> None:
    (copied / "slim.onnx").unlink()
    (copied / "checkpoints" / "scores.json").unlink()
    with (copied / "dense.onnx").open("r+b") as stream:
        stream.write(b"\0")
    (copied / "checkpoints" / "note.txt").write_text("mine")
    record = check_record(copied)
    assert record is not None
    assert record.files is not None
    assert record.files.missing == ("checkpoints/scores.json", "slim.onnx")
    assert record.files.changed == ("dense.onnx",)
    assert record.files.extra == ("checkpoints/note.txt",)
    with pytest.raises(
        CheckError,
        match=r"run is not what its run left: missing: checkpoints/scores\.json, slim\.onnx; changed: dense\.onnx; "
        r"extra: checkpoints/note\.txt; restore the files, or start a new run",
    ):
        record.require()


def test_no_link_is_followed_and_no_pipe_opened(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    shutil.move(copied / "plan.json", tmp_path / "plan.json")
    (copied / "plan.json").symlink_to(tmp_path / "plan.json")
    (copied / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(copied / "pipe")
    found = checksums(copied)
    assert (found["plan.json"], found["folder"], found["pipe"]) == (NO_PLAIN_FILE,) * 3
    record = check_record(copied)
    assert record is not None
    assert record.files is not None
    assert (record.files.changed, record.files.extra) == (("plan.json",), ("folder", "pipe"))


def test_a_link_on_record_is_no_reason_to_follow_it(tmp_path: Path) -> None:
    (tmp_path / "slim.onnx").symlink_to(tmp_path / "elsewhere")
    assert compare(tmp_path, {"slim.onnx": NO_PLAIN_FILE}).changed == ("slim.onnx",)


def test_names_on_record_that_lead_out_of_the_folder_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    for name in ("../secret", str(tmp_path / "secret")):
        assert compare(tmp_path / "run", {name: digest}).missing == (name,)


def test_a_verification_on_record_that_failed(copied: Path) -> None:
    rewritten(copied, verification={"gated_vs_slim": 0.0, "torch_vs_onnx": 0.5, "passed": False})
    record = check_record(copied)
    assert record is not None
    with pytest.raises(VerificationError, match=r"the verification on record FAILED .*torch vs onnx 5\.0e-01"):
        record.require()


def test_a_summary_of_an_earlier_version_has_no_checksums(copied: Path) -> None:
    summary = json.loads((copied / "summary.json").read_text())
    del summary["files"]
    (copied / "summary.json").write_text(json.dumps(summary))
    record = check_record(copied)
    assert record is not None
    assert record.files is None
    record.require()


@pytest.mark.parametrize("files", [3, ["plan.json"], {"plan.json": 1}])
def test_checksums_that_are_none(copied: Path, files: object) -> None:
    rewritten(copied, files=files)
    with pytest.raises(OutputError, match=r"summary\.json: key 'files"):
        check_record(copied)


def snapshot(folder: Path) -> dict[str, int]:
    """When everything in a folder, and the folder, was last changed."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.mark.slow
@pytest.mark.parametrize("locked_before", [True, False])
def test_a_folder_that_is_read_only(copied: Path, locked_before: bool) -> None:
    if not locked_before:  # copied by something that leaves hidden files out
        (copied / ".lock").unlink()
    paths = (copied, *copied.rglob("*"))
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    before = snapshot(copied)
    try:
        record = check_record(copied)
        assert record is not None
        assert record.good
        assert recheck(copied).passed
        assert snapshot(copied) == before  # for whom permissions do not bind
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)


def test_a_folder_in_which_a_run_is_working(copied: Path) -> None:
    with RunDirectory.reopen(copied)[0]:
        for look in (check_record, recheck):
            with pytest.raises(OutputError, match="another run is working here; wait for it to end"):
                look(copied)
    with looked_at(copied) as (directory, _), looked_at(copied):
        assert "report" in directory.done
        with pytest.raises(OutputError, match="another run is working here"):
            RunDirectory.reopen(copied)
    RunDirectory.reopen(copied)[0].close()


def test_a_disk_that_knows_no_locks(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("curlfx.run.directory.fcntl.flock", unknown)
    with looked_at(copied) as (directory, settings):
        assert "report" in directory.done
        assert settings["data"] == "digits"


def test_a_lock_that_is_a_link_is_not_followed(copied: Path, tmp_path: Path) -> None:
    (copied / ".lock").unlink()
    (copied / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"cannot read .*\.lock"):
        check_record(copied)


def test_what_a_killed_process_left_half_written_is_no_extra_file(copied: Path) -> None:
    (copied / "checkpoints" / ".refine.pt.7.partial").write_text("half")
    record = check_record(copied)
    assert record is not None
    assert record.good
    RunDirectory.reopen(copied)[0].close()
    assert not (copied / "checkpoints" / ".refine.pt.7.partial").exists()
