"""What other libraries say when they fail, in the one line that an error message has room for."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """First line of an exception's text that is not blank; the name of its class where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
