"""The silence around chatty libraries ends with the call."""

from __future__ import annotations

import logging
import warnings

import pytest

from curlfx.deploy.quiet import quiet


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
