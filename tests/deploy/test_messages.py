"""One line of what other libraries say."""

from __future__ import annotations

import logging
import warnings

import pytest

from curlfx.deploy.messages import first_line
from curlfx.deploy.quiet import quiet


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("one", "one"), ("\n \n  two words \nmore", "two words"), ("", "RuntimeError"), (" \n", "RuntimeError")],
)
def test_first_line(text, wanted):
    assert first_line(RuntimeError(text)) == wanted


def test_quiet_ends_with_an_error(caplog):
    def fail():
        with quiet():
            warnings.warn("unheard", stacklevel=1)
            logging.getLogger("other").error("unheard")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    logging.getLogger("other").error("heard")
    assert caplog.messages == ["heard"]
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
