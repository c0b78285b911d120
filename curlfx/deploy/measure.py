"""Filling a latency table: narrow networks of many widths, exported and timed side by side with the dense one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np

from curlfx.coupling import Coupling, GroupId
from curlfx.deploy.environment import environment
from curlfx.deploy.export import export_onnx
from curlfx.deploy.feeds import random_feeds
from curlfx.deploy.latency_table import FEWEST, LatencyTable, Sample
from curlfx.deploy.prepare import prepare
from curlfx.deploy.profile import NodeTime, profile
from curlfx.deploy.session import check_runtime, open_session
from curlfx.deploy.turns import take_turns
from curlfx.errors import ConfigError, PlanError
from curlfx.files import unwritable
from curlfx.graph import TracedModel
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning import Fingerprint, resolve_round_to
from curlfx.planning.probes import random_widths
from curlfx.progress import Progress, StepEvent, StepTimer

METHOD = 1  # of measuring; tables of another are not taken
ROUNDS = 12  # interleaved turns of one network and the dense one
RUNS = (2, 30)  # timed calls in a turn
PROFILED, UNDISTURBED = 8, 0.1  # fewest profiled runs, and the quantile of them that counts
ODD, AGAIN = 0.08, 2  # a network that the others predict this badly is measured again so often; the median holds
TURN_MS = 60.0  # a turn takes about that long, within these numbers
Keep = Mapping[GroupId, tuple[int, ...]]


@dataclass(frozen=True)
class TableSettings:
    """What latency is measured for.

    Attributes:
        provider: As `curlfx.deploy.BenchSettings`.
        threads: Likewise.
        batch_size: Likewise.
        probes: Narrow networks to measure.
        round_to: Multiple that their widths have; ``"auto"``: 16 or 8 on the CPU, as `curlfx.plan`, 8 elsewhere.
        seed: Of the random widths and inputs.
    """

    provider: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    probes: int = 24
    round_to: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("probes", FEWEST - 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: want {least} or more")


def measure_latency(
    traced: TracedModel,
    coupling: Coupling,
    settings: TableSettings | None = None,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure a network at many random widths on onnxruntime.

    Every narrow network is slimmed, exported, timed in turns with the dense one, and profiled node by node. The table
    is saved after each of them, so that what was interrupted goes on where it was; one that is there is only read.

    Args:
        traced: The dense network.
        coupling: Its channels.
        settings: What to measure for.
        cache: Folder for tables, one file per network, runtime, machine and settings; None: `cache_folder`.

    Raises: ConfigError for a provider that is not there or a setting out of range; ModelError when the network cannot
        be exported; OutputError when the folder cannot be written.
    """
    chosen = settings or TableSettings()
    check_runtime(chosen.provider, chosen.threads)
    about = _about(traced, coupling, chosen)
    folder = cache_folder() if cache is None else Path(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    path = folder / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]}.json"
    table = _known(path, about)
    probes: list[Keep] = [{}]
    step = resolve_round_to(chosen.round_to, chosen.provider)
    probes += random_widths(coupling, chosen.probes, round_to=step, seed=chosen.seed)
    left = probes[len(table.samples) :]
    if table.complete:
        return table
    timer = StepTimer(len(probes), done=len(table.samples))
    with Stopwatch(traced, coupling, chosen) as stopwatch:
        for keep in left:
            table.samples.append(stopwatch.sample(keep, table.dense_ms if table.samples else None))
            table.save(path)
            if progress is not None:
                done = len(table.samples)
                seconds = timer.seconds_left(done)
                progress.on_step(StepEvent("latency", 0, done, len(probes), seconds_left=seconds))
        _measure_odd_ones(table, stopwatch, probes)
    table.complete = True
    table.save(path)
    return table


def _measure_odd_ones(table: LatencyTable, stopwatch: Stopwatch, probes: Sequence[Keep]) -> None:
    """Measure again what the other networks predict badly: mostly another program ran just then."""
    errors = table.relative_errors(stopwatch.traced, stopwatch.coupling)
    for place in np.flatnonzero(np.abs(errors) > ODD).tolist():
        found = [table.samples[place], *(stopwatch.sample(probes[place], table.dense_ms) for _ in range(AGAIN))]
        table.samples[place] = sorted(found, key=lambda sample: sample.milliseconds)[len(found) // 2]


def cache_folder() -> Path:
    """``$CURLFX_CACHE``, else ``curlfx`` in the user's folder for caches, and in it ``latency``."""
    own = os.environ.get("CURLFX_CACHE")
    if own:
        return Path(own) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curlfx" / "latency"


class Stopwatch:
    """Times networks beside the dense one, which is open as long as the stopwatch is. A context manager."""

    def __init__(self, traced: TracedModel, coupling: Coupling, settings: TableSettings) -> None:
        self.traced, self.coupling, self.settings = traced, coupling, settings
        self._folder = TemporaryDirectory(prefix="curlfx-latency-")
        self._dense = Path(self._folder.name) / "dense.onnx"

    def __enter__(self) -> Self:
        try:
            self._export({}, self._dense)
            self._session, self._feeds = self._open(self._dense)
            alone = take_turns([self._dense], [self._session], [self._feeds], rounds=2, runs=1, warmup=3)
        except BaseException:
            self._folder.cleanup()
            raise
        self._runs = int(np.clip(TURN_MS / float(alone.min()), *RUNS))
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def dense_now(self) -> float:
        """Median latency of the dense network as the machine is now, milliseconds."""
        own = [self._dense], [self._session], [self._feeds]
        return float(np.median(take_turns(*own, rounds=ROUNDS, runs=self._runs, warmup=3)))

    def sample(self, keep: Keep, dense_ms: float | None) -> Sample:
        """Measure one network; its times are scaled to a dense latency of ``dense_ms``, if that is given.

        The latency is the dense one times the median, over the rounds, of the ratio of the quickest calls of the two
        turns: what interrupts a call now and then, and what slows both down, falls out.
        """
        if not keep:
            found = self.dense_now() if dense_ms is None else dense_ms
            return Sample(self.coupling.alive(keep), found, self._profile(self._dense, self._feeds))
        path = Path(self._folder.name) / "narrow.onnx"
        self._export(keep, path)
        session, feeds = self._open(path)
        paths, sessions = [self._dense, path], [self._session, session]
        timings = take_turns(paths, sessions, [self._feeds, feeds], rounds=ROUNDS, runs=self._runs, warmup=3)
        dense, narrow = timings.min(axis=2)
        reference = float(np.median(timings[0])) if dense_ms is None else dense_ms
        return Sample(
            self.coupling.alive(keep), reference * float(np.median(narrow / dense)), self._profile(path, feeds)
        )

    def _profile(self, path: Path, feeds: Mapping[str, Any]) -> tuple[NodeTime, ...]:
        chosen = self.settings
        runs = max(PROFILED, self._runs)
        return profile(path, feeds, provider=chosen.provider, threads=chosen.threads, runs=runs, quantile=UNDISTURBED)

    def _open(self, path: Path) -> tuple[Any, dict[str, Any]]:
        chosen = self.settings
        session = open_session(path, provider=chosen.provider, threads=chosen.threads)
        return session, random_feeds(path, session, batch_size=chosen.batch_size, shapes={}, seed=chosen.seed)

    def _export(self, keep: Keep, path: Path) -> None:
        slim = self.traced
        if keep:
            slim, _ = run(self.traced, [Slim(self.coupling, keep)], own_weights=False)
        ready = prepare(slim)
        export_onnx(ready.module, ready.example_inputs, path, dynamic_batch=slim.dynamic_batch)


def _known(path: Path, about: Mapping[str, Any]) -> LatencyTable:
    """What is in the cache; an empty table where there is nothing, or nothing that can be read."""
    if path.exists():
        try:
            found = LatencyTable.load(path)
        except PlanError:
            return LatencyTable(about)
        if found.about == about:
            return found
    return LatencyTable(about)


def _about(traced: TracedModel, coupling: Coupling, settings: TableSettings) -> dict[str, Any]:
    """Everything that times depend on; JSON values."""
    place = environment()
    return {
        "method": METHOD,
        "network": Fingerprint.of(traced, coupling).sha256,
        "dtypes": sorted({str(parameter.dtype) for parameter in traced.module.parameters()}),
        "block": resolve_round_to("auto", settings.provider),
        "frozen": sorted({frozen.reason for frozen in coupling.frozen}),
        "provider": settings.provider,
        "threads": settings.threads,
        "batch_size": settings.batch_size,
        "probes": settings.probes,
        "round_to": resolve_round_to(settings.round_to, settings.provider),
        "seed": settings.seed,
        **{package: place["versions"][package] for package in ("curlfx", "torch", "onnxruntime")},
        "cpu": place["cpu"],
        "cpu_flags": place["cpu_flags"],
        "cores": place["cores"],
    }
