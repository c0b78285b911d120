"""A headless Chromium for tests: that of Debian, Google's, or Playwright's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "CURLFX_CHROMIUM"
PATIENCE = 180_000.0
"""Milliseconds that a browser may take for anything, on a busy machine too."""


def executable(own: str) -> str:
    """Where a browser is; ``own`` is where Playwright would have one. Skips the test where none is."""
    named = os.environ.get(VARIABLE)
    found = named or next(filter(None, map(shutil.which, NAMES)), None) or own
    if not Path(found).is_file():
        pytest.skip(f"no browser: install Debian's chromium, run 'playwright install chromium', or set {VARIABLE}")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A started browser. Skips the test without Playwright, or without a browser."""
    api = pytest.importorskip("playwright.sync_api", reason="drives the browser; pip install playwright")
    with api.sync_playwright() as playwright:
        place = executable(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=place, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()
