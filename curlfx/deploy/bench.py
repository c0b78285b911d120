"""Latency of ONNX files in onnxruntime, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curlfx.deploy.environment import cores, environment
from curlfx.deploy.model_file import OnnxFile, describe, read_onnx
from curlfx.deploy.session import open_session, provider_name, run_session
from curlfx.deploy.statistics import Latency, Speedup, Timings
from curlfx.errors import ConfigError, ModelError
from curlfx.progress import Progress, StepEvent, StepTimer

NOISY = 0.1  # coefficient of variation worth a warning
FEWEST_ROUNDS = 10
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class BenchSettings:
    """How latency is measured.

    Attributes:
        batch_size: Images per call.
        threads: Of one operator.
        provider: ``cpu``, ``cuda``, … or onnxruntime's own name; copies to and from a device are in the time.
        rounds: In every round each file has its turn, in one order and then in the other.
        runs: Timed calls per turn, after one that is not (it finds the caches full of the other file).
        warmup: Calls of each file before the first round.
        max_seconds: No round begins after this long, but `FEWEST_ROUNDS` are made; None sets no limit.
        seed: Of the random inputs and of the bootstrap.
    """

    batch_size: int = 1
    threads: int = 1
    provider: str = "cpu"
    rounds: int = 40
    runs: int = 5
    warmup: int = 10
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("threads", 1), ("rounds", 2), ("runs", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: want {least} or more")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError(f"max_seconds = {self.max_seconds}: want more than 0")


@dataclass(frozen=True)
class BenchEntry:
    """One file.

    Attributes:
        file: What it holds.
        latency_ms: Of one call, at the batch size of the settings.
        throughput: Images per second at the median latency.
        speedup: Over the first file; None for the first itself.
    """

    file: OnnxFile
    latency_ms: Latency
    throughput: float
    speedup: Speedup | None


@dataclass(frozen=True)
class BenchReport:
    """Latencies with everything they depend on.

    Attributes:
        entries: In the order asked for.
        settings: As asked for.
        rounds: Rounds made.
        environment: As `curlfx.deploy.environment`.
        warnings: What makes these numbers doubtful, one sentence each.
    """

    entries: tuple[BenchEntry, ...]
    settings: BenchSettings
    rounds: int
    environment: dict[str, Any]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; keys as the attributes."""
        return {
            "entries": [
                {
                    "path": str(entry.file.path),
                    "size_bytes": entry.file.size_bytes,
                    "opset": entry.file.opset,
                    "operators": entry.file.operators,
                    "latency_ms": entry.latency_ms.to_json(),
                    "throughput": entry.throughput,
                    "speedup": None if entry.speedup is None else asdict(entry.speedup),
                }
                for entry in self.entries
            ],
            "settings": asdict(self.settings),
            "rounds": self.rounds,
            "environment": self.environment,
            "warnings": list(self.warnings),
        }


def bench(
    paths: Sequence[str | Path],
    settings: BenchSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time ONNX files on random inputs, interleaved, and compare each with the first.

    Args:
        shapes: Full shape by input name, for inputs whose shape the file leaves open in more than the batch.

    Raises: ModelError for a file that is missing, damaged, refused, or whose inputs cannot be made; ConfigError for
        settings out of range or a provider that is not there.
    """
    chosen = settings or BenchSettings()
    if not paths:
        raise ConfigError("bench: want at least one ONNX file")
    provider_name(chosen.provider)
    files = [Path(path) for path in paths]
    sessions = [open_session(path, provider=chosen.provider, threads=chosen.threads) for path in files]
    feeds = [_inputs(path, one, chosen, shapes or {}) for path, one in zip(files, sessions, strict=True)]
    timings = _measure(files, sessions, feeds, chosen, progress)
    entries = []
    for position, path in enumerate(files):
        latency = Latency.of(timings[position])
        speedup = Speedup.between(timings[0], timings[position], seed=chosen.seed) if position else None
        throughput = 1000.0 * chosen.batch_size / latency.median
        entries.append(BenchEntry(describe(path, read_onnx(path)), latency, throughput, speedup))
    return BenchReport(tuple(entries), chosen, timings.shape[1], environment(), _doubts(entries, chosen))


def _measure(
    paths: Sequence[Path],
    sessions: Sequence[Any],
    feeds: Sequence[dict[str, Any]],
    settings: BenchSettings,
    progress: Progress | None,
) -> Timings:
    """Milliseconds of every timed call, ``(files, rounds, runs)``."""
    pairs = list(zip(sessions, feeds, strict=True))
    for path, (session, feed) in zip(paths, pairs, strict=True):
        run_session(path, session, feed, max(1, settings.warmup))
    taken = np.empty((len(pairs), settings.rounds, settings.runs))
    order, started, timer = list(range(len(pairs))), time.perf_counter(), StepTimer(settings.rounds)
    for number in range(settings.rounds):
        for position in order if number % 2 == 0 else reversed(order):
            taken[position, number] = _turn(*pairs[position], settings.runs)
        done = number + 1
        spent = time.perf_counter() - started
        last = settings.max_seconds is not None and done >= FEWEST_ROUNDS and spent > settings.max_seconds
        if progress is not None:
            total = done if last else settings.rounds
            progress.on_step(StepEvent("bench", 0, done, total, seconds_left=timer.seconds_left(done)))
        if last:
            return taken[:, :done]
    return taken


def _turn(session: Any, feed: dict[str, Any], runs: int) -> list[float]:
    """Milliseconds of ``runs`` calls after one that is not timed."""
    session.run(None, feed)
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        session.run(None, feed)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _inputs(path: Path, session: Any, settings: BenchSettings, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Random inputs of the session, by name: normal for floating point, zeros for integers (they may be indices)."""
    generator = np.random.default_rng(settings.seed)
    known = {value.name for value in session.get_inputs()}
    for name in shapes:
        if name not in known:
            raise ConfigError(f"{path}: has no input {name!r}; its inputs are {', '.join(sorted(known))}")
    feeds = {}
    for value in session.get_inputs():
        shape = _shape(path, value.name, value.shape, settings.batch_size, shapes.get(value.name))
        if value.type not in _TYPES:
            raise ModelError(f"{path}: input {value.name!r} is a {value.type}; want one of {', '.join(_TYPES)}")
        kind = np.dtype(_TYPES[value.type])
        drawn = generator.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
        feeds[value.name] = drawn.astype(kind)
    return feeds


def _shape(
    path: Path, name: str, declared: Sequence[int | str | None], batch: int, wanted: Sequence[int] | None
) -> tuple[int, ...]:
    if wanted is not None:
        agrees = len(wanted) == len(declared) and all(
            not isinstance(axis, int) or axis == size for axis, size in zip(declared, wanted, strict=True)
        )
        if not agrees:
            raise ConfigError(f"{path}: input {name!r} is {list(declared)}; shape {list(wanted)} does not fit it")
        return tuple(wanted)
    if declared and isinstance(declared[0], int) and declared[0] != batch:
        raise ConfigError(f"{path}: input {name!r} takes batch {declared[0]} only; want batch_size={declared[0]}")
    rest = declared[1:]
    if not all(isinstance(axis, int) for axis in rest):
        raise ModelError(f"{path}: input {name!r} leaves its shape open: {list(declared)}; give it with shapes")
    return tuple(int(axis) for axis in ([batch, *rest] if declared else []) if axis is not None)


def _doubts(entries: Sequence[BenchEntry], settings: BenchSettings) -> tuple[str, ...]:
    doubts = []
    for entry in entries:
        name, speedup = entry.file.path.name, entry.speedup
        if speedup is not None and speedup.is_noise:
            doubts.append(
                f"{name}: the speed-up {speedup.ratio:.2f} is within the noise (95 % interval {speedup.low:.2f} to "
                f"{speedup.high:.2f})"
            )
        if entry.latency_ms.cov > NOISY:
            doubts.append(f"{name}: latency varies by {entry.latency_ms.cov:.0%}; other programs may be running")
    if settings.threads > cores():
        doubts.append(f"{settings.threads} threads share {cores()} cores")
    return tuple(doubts)
