"""Latency of ONNX files in onnxruntime, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curlfx.deploy.breakdown import Breakdown, break_down
from curlfx.deploy.environment import cores, environment
from curlfx.deploy.feeds import random_feeds
from curlfx.deploy.memory import peak_memory
from curlfx.deploy.model_file import OnnxFile, describe, read_onnx
from curlfx.deploy.profile import profile
from curlfx.deploy.session import open_session, provider_name
from curlfx.deploy.statistics import Latency, Speedup, Timings
from curlfx.deploy.turns import take_turns
from curlfx.errors import ConfigError
from curlfx.progress import Progress

NOISY = 0.1  # coefficient of variation worth a warning
PROFILED_MS = 2000.0  # spent on the profile of one file, within the numbers of runs
PROFILED_RUNS = (3, 20)


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
        max_seconds: No round begins after this long, but `curlfx.deploy.turns.FEWEST_ROUNDS` are made; None: no limit.
        seed: Of the random inputs and of the bootstrap.
        profile: Also time every node of every file, as `curlfx.deploy.profile`.
        memory: Also measure the memory of every file, as `curlfx.deploy.memory`; takes about a second a file.
    """

    batch_size: int = 1
    threads: int = 1
    provider: str = "cpu"
    rounds: int = 40
    runs: int = 5
    warmup: int = 10
    max_seconds: float | None = None
    seed: int = 0
    profile: bool = False
    memory: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("threads", 1), ("rounds", 2), ("runs", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: want {least} or more")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError(f"max_seconds = {self.max_seconds}: want more than 0")


@dataclass(frozen=True)
class BenchEntry:
    """Latency of one file, and what else was asked for.

    Attributes:
        file: What it holds.
        latency_ms: Of one call, at the batch size of the settings.
        throughput: Images per second at the median latency.
        speedup: Over the first file; None for the first itself.
        profile: Where the time goes; None where it was not asked for.
        memory_mib: Peak of resident memory, in MiB above that of a one-node file; None where it was not asked for.
    """

    file: OnnxFile
    latency_ms: Latency
    throughput: float
    speedup: Speedup | None
    profile: Breakdown | None = None
    memory_mib: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; those of the file beside the others."""
        return {
            "path": str(self.file.path),
            "size_bytes": self.file.size_bytes,
            "opset": self.file.opset,
            "operators": self.file.operators,
            "latency_ms": self.latency_ms.to_json(),
            "throughput": self.throughput,
            "speedup": None if self.speedup is None else asdict(self.speedup),
            "profile": None if self.profile is None else self.profile.to_json(),
            "memory_mib": self.memory_mib,
        }


@dataclass(frozen=True)
class BenchReport:
    """Latencies with everything they depend on.

    Attributes:
        entries: In the order asked for.
        settings: As asked for.
        rounds: Rounds made.
        environment: As `curlfx.deploy.environment`.
        warnings: What makes these numbers doubtful or a file slow, one sentence each.
    """

    entries: tuple[BenchEntry, ...]
    settings: BenchSettings
    rounds: int
    environment: dict[str, Any]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; keys as the attributes."""
        return {
            "entries": [entry.to_json() for entry in self.entries],
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
    feeds = [
        random_feeds(path, one, batch_size=chosen.batch_size, shapes=shapes or {}, seed=chosen.seed)
        for path, one in zip(files, sessions, strict=True)
    ]
    timings = take_turns(
        files,
        sessions,
        feeds,
        rounds=chosen.rounds,
        runs=chosen.runs,
        warmup=chosen.warmup,
        max_seconds=chosen.max_seconds,
        progress=progress,
    )
    del sessions  # the memory is free for what else is asked for
    memory: Sequence[float | None] = [None] * len(files)
    if chosen.memory:
        memory = peak_memory(files, feeds, provider=chosen.provider, threads=chosen.threads)
    entries = tuple(
        _entry(path, timings[0] if place else None, timings[place], feeds[place], memory[place], chosen)
        for place, path in enumerate(files)
    )
    return BenchReport(entries, chosen, timings.shape[1], environment(), _doubts(entries, chosen))


def _entry(
    path: Path,
    first: Timings | None,
    timings: Timings,
    feeds: Mapping[str, Any],
    memory_mib: float | None,
    settings: BenchSettings,
) -> BenchEntry:
    """What was measured of one file, and its profile; ``first`` are the timings to compare with."""
    latency = Latency.of(timings)
    return BenchEntry(
        file=describe(path, read_onnx(path)),
        latency_ms=latency,
        throughput=1000.0 * settings.batch_size / latency.median,
        speedup=None if first is None else Speedup.between(first, timings, seed=settings.seed),
        profile=_profile(path, feeds, latency, settings) if settings.profile else None,
        memory_mib=memory_mib,
    )


def _profile(path: Path, feeds: Mapping[str, Any], latency: Latency, settings: BenchSettings) -> Breakdown:
    fewest, most = PROFILED_RUNS
    runs = min(most, max(fewest, int(PROFILED_MS / latency.median)))
    nodes = profile(path, feeds, provider=settings.provider, threads=settings.threads, runs=runs)
    return break_down(path, nodes)


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
        if entry.profile is not None:
            doubts += entry.profile.sentences(name)
    if settings.threads > cores():
        doubts.append(f"{settings.threads} threads share {cores()} cores")
    return tuple(doubts)
