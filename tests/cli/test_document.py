"""``--json``: what is printed is JSON, whatever was found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import curlfx.cli
from curlfx.cli import check
from curlfx.cli.document import print_json
from curlfx.run.verify import Check, VerifyReport
from tests.cli.conftest import Program


def strict(text: str) -> object:
    """The value of a text, as a parser reads it that knows JSON alone."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_none_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {
            "numbers": [1, 2.5, math.nan, math.inf, -math.inf, np.float64("nan"), True, None],
            "deep": ({"x": (math.nan,)},),
            "path": Path("a/b"),
            "text": "NaN",
        }
    )
    assert strict(capsys.readouterr().out) == {
        "numbers": [1, 2.5, None, None, None, None, True, None],
        "deep": [{"x": [None]}],
        "path": "a/b",
        "text": "NaN",
    }


def test_a_check_that_found_no_number(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    found = VerifyReport((Check("torch vs onnx", math.nan, 1e-4), Check("gated vs slim", math.inf, 1e-9)))
    monkeypatch.setattr(check, "open_network", lambda *_, **__: None)
    monkeypatch.setattr(check, "check_plan", lambda *_: found)
    done = program("verify", "curlfx:digits", "plan.json", "--json")
    assert done.code == 1
    assert strict(done.out) == {
        "files": None,
        "on_record": None,
        "checks": [
            {"name": "torch vs onnx", "error": None, "bound": 1e-4, "passed": False},
            {"name": "gated vs slim", "error": None, "bound": 1e-9, "passed": False},
        ],
        "passed": False,
    }


def test_no_command_prints_json_in_another_way() -> None:
    folder = Path(curlfx.cli.__file__).parent
    assert [path.name for path in sorted(folder.glob("*.py")) if "json.dump" in path.read_text()] == ["document.py"]
