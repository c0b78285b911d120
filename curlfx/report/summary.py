"""``summary.json``: the figures of a run under stable keys, the contract for tools that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OPTIONAL = ("speedup_interval", "int8", "latency", "gradual", "files")
"""Keys that are there only where they say something."""


@dataclass(frozen=True)
class Latency:
    """Time of one run of the network on onnxruntime.

    Units: all in milliseconds.
    """

    median: float
    p90: float
    p99: float
    min: float
    mean: float


@dataclass(frozen=True)
class Interval:
    """Where a ratio lies, as surely as ``confidence`` says, by bootstrap over the rounds of the measurement.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        confidence: In (0, 1), as 0.95.
    """

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class NetworkFigures:
    """What one network costs and is worth.

    Attributes:
        macs: Multiply-adds of conv, linear and matmul for one image.
        padded_macs: The same with channel axes rounded up to the runtime's block.
        params: Number of parameters.
        size_bytes: Size of the ONNX file.
        accuracy: Top-1 on the test images, in [0, 1].
        latency_ms: Measured on onnxruntime, interleaved with the other network.
    """

    macs: int
    padded_macs: int
    params: int
    size_bytes: int
    accuracy: float
    latency_ms: Latency


@dataclass(frozen=True)
class Verification:
    """How far networks that must agree were apart.

    Attributes:
        gated_vs_slim: Largest relative difference of the outputs in float64, before recovery.
        torch_vs_onnx: Largest relative difference of the outputs in float32, over both networks and all batch sizes.
        passed: Both are within their bounds.
    """

    gated_vs_slim: float
    torch_vs_onnx: float
    passed: bool


@dataclass(frozen=True)
class Summary:
    """The figures of one run; `as_dict` has the keys of ``summary.json`` in their order.

    Attributes:
        model: MODEL as it was given.
        seed: Of every random choice.
        versions: Version by package.
        device: Processor, threads and provider of the measurement.
        dense: The network as it was.
        slim: The network as it is now.
        speedup: Median latency of the dense network divided by that of the slim one.
        speedup_interval: Interval of ``speedup``; not there in summaries of earlier versions.
        verification: What was checked.
        target: What was asked for, like ``{"macs": "50%"}``.
        importance: Criterion.
        recovery: Settings of the recovery, the accuracy before it, and that after each of its stages.
        seconds: Wall-clock seconds by stage.
        int8: ``accuracy``, ``size_bytes``, ``latency_ms`` and ``speedup`` with its interval, of the slim network in 8
            bits, and how far it agrees with the float one on its calibration images; only where it was asked for.
        latency: The measured plan where a latency was the target: ``limit_ms``, ``measured_ms``, ``met``, ``attempts``
            (predicted and measured), ``prediction_error`` of the table; only there.
        gradual: The pruning where it went on while the network was trained: its schedule, ``steps`` (``epoch``,
            ``channels`` that went, what was ``left``, ``macs``, ``params``, ``seconds``), ``reached`` (the target),
            ``training_macs`` and ``training_macs_dense``, ``training_seconds`` and, estimated from the epochs up to
            the first step, ``training_seconds_dense``, ``check`` (trained network against slim); only there.
        files: SHA-256 of every file that the run left, by its path in the run directory, but for the summary itself,
            the page, the log and the record of the stages; not there in summaries of earlier versions.
    """

    model: str
    seed: int
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    dense: NetworkFigures
    slim: NetworkFigures
    speedup: float
    speedup_interval: Interval | None = field(default=None, kw_only=True)
    verification: Verification
    target: Mapping[str, Any]
    importance: str
    recovery: Mapping[str, Any]
    seconds: Mapping[str, float]
    int8: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None
    gradual: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        found = asdict(self)
        return {key: value for key, value in found.items() if value is not None or key not in OPTIONAL}
