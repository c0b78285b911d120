"""The tree of errors: one root, and an exit status that tells a caller's mistake from a failed check."""

import pytest

from curlfx import errors
from curlfx.errors import CheckError, CurlfxError, InvariantError, UsageError, first_line

TREE = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_exit_code(error: type[CurlfxError]) -> None:
    assert issubclass(error, CurlfxError)
    assert error.exit_code == (2 if issubclass(error, UsageError) else 1)
    assert sum(issubclass(error, kind) for kind in (UsageError, CheckError, InvariantError)) == (
        error is not CurlfxError
    )


def test_every_error_is_public() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert set(TREE) == kinds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("one", "one"), ("\n \n  two words \nmore", "two words"), ("", "RuntimeError"), (" \n", "RuntimeError")],
)
def test_first_line(text: str, wanted: str) -> None:
    assert first_line(RuntimeError(text)) == wanted
