"""What the reader of a terminal and the reader of a log file see."""

from __future__ import annotations

import io

import pytest

from curlfx.progress import RichProgress, StepEvent, StepTimer, describe, duration


def test_description():
    assert describe(StepEvent("recover", 3, 30, 100, 0.4123, 0.8706, 62)) == (
        "epoch 3  loss 0.4123  accuracy 0.871  1:02 left"
    )
    assert describe(StepEvent("score", 0, 5, 5, seconds_left=0.0)) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_away_from_a_terminal_one_line_per_stage():
    stream = io.StringIO()
    with RichProgress(stream) as progress:
        for step in range(1, 51):
            progress.on_step(StepEvent("train", 1, step, 50, 1.0 / step, 0.5, 1.0))
        progress.on_step(StepEvent("score", 0, 2, 2))
    assert stream.getvalue() == "train 50/50  epoch 1  loss 0.02  accuracy 0.500\nscore 2/2\n"


def test_away_from_a_terminal_a_sign_of_life():
    stream = io.StringIO()
    with RichProgress(stream, quiet_seconds=0) as progress:
        progress.on_step(StepEvent("train", 1, 1, 3, 1.0, 0.5, 7))
    assert stream.getvalue() == "train 1/3  epoch 1  loss 1  accuracy 0.500  0:07 left\n"


def test_on_a_terminal_a_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    with RichProgress(stream) as progress:
        progress.on_step(StepEvent("recover", 2, 5, 10, 0.25, 0.9, 61))
        progress.on_step(StepEvent("recover", 3, 10, 10, 0.125, 0.95, 0))
    shown = stream.getvalue()
    assert "recover" in shown
    assert "epoch 3  loss 0.125  accuracy 0.950" in shown


def test_no_estimate_before_a_step_of_this_process():
    timer = StepTimer(100, done=40)
    assert timer.seconds_left(40) is None
    left = timer.seconds_left(50)
    assert left is not None
    assert left >= 0
    assert timer.seconds_left(100) == 0
