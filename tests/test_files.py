"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from curlfx.errors import OutputError
from curlfx.files import read_json, read_text, sha256, write_bytes, written


def test_replaces_whole(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with written(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        fail()
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        write_bytes(tmp_path / "absent" / "a.bin", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_plain_file_is_never_replaced(tmp_path, make):
    """A rename would put a file where a pipe or a device was."""
    make(tmp_path / "way")
    before = (tmp_path / "way").lstat()
    with pytest.raises(OutputError, match=r"cannot write .*way: it is a folder or a device; name a file"):
        write_bytes(tmp_path / "way", b"data")
    assert (tmp_path / "way").lstat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["way"]


def test_a_text_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("häß")
    assert read_text(path, 5) == "häß"
    with pytest.raises(OSError, match="larger than"):
        read_text(path, 4)
    with pytest.raises(OSError, match="larger than 1 MiB"):  # it never ends
        read_text(Path("/dev/zero"), 2**20)


def test_json_that_is_nested_too_deeply_is_a_fault_of_the_file(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "a.json")


def test_a_checksum_of_bytes_and_of_a_file(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    with (tmp_path / "a.bin").open("rb") as stream:
        assert sha256(stream) == sha256(content) == hashlib.sha256(content).hexdigest()
