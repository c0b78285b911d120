"""Files appear whole or not at all."""

from __future__ import annotations

import errno

import pytest

from curlfx.errors import OutputError
from curlfx.files import write_bytes, written


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
