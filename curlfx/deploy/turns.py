"""Timing sessions turn and turn about, so that what slows the machine down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curlfx.deploy.session import run_session
from curlfx.deploy.statistics import Timings
from curlfx.progress import Progress, StepEvent, StepTimer

FEWEST_ROUNDS = 10


def take_turns(
    paths: Sequence[Path],
    sessions: Sequence[Any],
    feeds: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    runs: int,
    warmup: int,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> Timings:
    """Milliseconds of every timed call, ``(files, rounds, runs)``.

    Args:
        paths: What the sessions were opened from, for messages.
        sessions: What is timed.
        feeds: Inputs of each.
        rounds: In every round each session has its turn, in one order and then in the other.
        runs: Timed calls per turn, after one that is not (it finds the caches full of the other file).
        warmup: Calls of each session before the first round, at least one.
        max_seconds: No round begins after this long, but `FEWEST_ROUNDS` are made; None sets no limit.

    Raises: ModelError for a session that fails on its inputs.
    """
    pairs = list(zip(sessions, feeds, strict=True))
    for path, (session, feed) in zip(paths, pairs, strict=True):
        run_session(path, session, feed, max(1, warmup))
    taken = np.empty((len(pairs), rounds, runs))
    order, started, timer = list(range(len(pairs))), time.perf_counter(), StepTimer(rounds)
    for number in range(rounds):
        for position in order if number % 2 == 0 else reversed(order):
            taken[position, number] = _turn(*pairs[position], runs)
        done = number + 1
        spent = time.perf_counter() - started
        last = max_seconds is not None and done >= FEWEST_ROUNDS and spent > max_seconds
        if progress is not None:
            total = done if last else rounds
            progress.on_step(StepEvent("bench", 0, done, total, seconds_left=timer.seconds_left(done)))
        if last:
            return taken[:, :done]
    return taken


def _turn(session: Any, feed: Mapping[str, Any], runs: int) -> list[float]:
    """Milliseconds of ``runs`` calls after one that is not timed."""
    session.run(None, feed)
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        session.run(None, feed)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times
