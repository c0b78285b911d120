"""What stages leave in ``state.json`` for those behind them and for the page, checked before a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError


class Result(BaseModel):
    """A result as far as it is read again; whatever else a stage noted may stand beside it."""

    model_config = ConfigDict(strict=True, frozen=True)


class Check(Result):
    """As `curlfx.run.verify.Check`."""

    name: str
    error: FiniteFloat
    bound: FiniteFloat


class Gradual(Result):
    """Of a pruning while the network was trained."""

    steps: list[dict[str, Any]]
    check: Check


class Train(Result):
    """Of the stage ``train``."""

    epochs: int
    gradual: Gradual | None = None


class Judged(Result):
    """Of a stage that ends with an accuracy on the test images."""

    accuracy: FiniteFloat


class JudgedIfTrained(Result):
    """Of a stage that is left out where nothing asks for it."""

    accuracy: FiniteFloat | None


class Recalibrated(JudgedIfTrained):
    """Of the stage ``recalibrate``."""

    batches: int


class Trained(JudgedIfTrained):
    """Of the stages ``overparam`` and ``recover``."""

    epochs: int


class JudgedOnImages(Judged):
    """Of the stage ``accuracy``."""

    images: int


class Traced(Result):
    """Of the stage ``trace``."""

    notes: list[str]


class Cost(Result):
    """Of one network."""

    macs: int
    padded_macs: int
    params: int


class Planned(Result):
    """Of the stage ``plan``."""

    dense: Cost
    slim: Cost
    latency: dict[str, Any] | None = None


class Group(Result):
    """As `curlfx.report.layers.group_rows`."""

    id: str
    members: int
    width: int
    kept: int


class Frozen(Result):
    """As `curlfx.report.layers.frozen_rows`."""

    site: str
    width: int
    reason: str
    node: str


class Absorbed(Result):
    """What biases could not take over."""

    refused: list[str]


class Slimmed(Result):
    """Of the stage ``slim``."""

    check: Check
    groups: list[Group]
    frozen: list[Frozen]
    statistics_change: list[str]
    absorbed: Absorbed | None = None


class File(Result):
    """An exported file."""

    size_bytes: int


class Quantised(File):
    """The one in 8 bits."""

    accuracy: FiniteFloat


class Exported(Result):
    """Of the stage ``export``."""

    dense: File
    slim: File
    int8: Quantised | None = None


class Verified(Result):
    """Of the stage ``verify``."""

    checks: list[Check] = Field(min_length=1)


class Latency(Result):
    """Of one file, in milliseconds."""

    median: FiniteFloat
    p90: FiniteFloat
    p99: FiniteFloat
    min: FiniteFloat
    mean: FiniteFloat


class Latencies(Result):
    """Of all files."""

    dense: Latency
    slim: Latency
    int8: Latency | None = None


class Interval(Result):
    """Of a speed-up."""

    low: FiniteFloat
    high: FiniteFloat
    confidence: FiniteFloat


class Timing(Result):
    """Of one file, for the page."""

    name: str
    median: FiniteFloat


class Measured(Result):
    """Of the stage ``bench``."""

    speedup: FiniteFloat
    speedup_interval: Interval | None = None
    int8_speedup: FiniteFloat | None = None
    int8_speedup_interval: Interval | None = None
    latency_ms: Latencies
    timings: list[Timing]
    measurement: str
    warnings: list[str]
    versions: dict[str, str]
    device: dict[str, Any]
    padding: int


RESULTS: Mapping[str, type[Result]] = {
    "train": Train,
    "dense": Judged,
    "trace": Traced,
    "plan": Planned,
    "slim": Slimmed,
    "unrecovered": Judged,
    "recalibrate": Recalibrated,
    "overparam": Trained,
    "recover": Trained,
    "accuracy": JudgedOnImages,
    "export": Exported,
    "verify": Verified,
    "bench": Measured,
}
"""By stage. What the others noted is read by the page alone, which says itself what it cannot show."""


def damage(done: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What keeps results of finished stages from being read again, with its place; None: nothing."""
    for stage, form in RESULTS.items():
        if stage in done:
            try:
                form.model_validate(done[stage])
            except ValidationError as error:
                return _said(stage, error)
    if done.get("export", {}).get("int8") is not None and "bench" in done:
        return next((f"done['bench'].{key}: missing" for key in _of_int8_missing(done["bench"])), None)
    return None


def _of_int8_missing(bench: Mapping[str, Any]) -> list[str]:
    """What was not measured of a file in 8 bits that was written."""
    missing = [] if bench.get("int8_speedup") is not None else ["int8_speedup"]
    return missing if bench["latency_ms"].get("int8") is not None else [*missing, "latency_ms.int8"]


def _said(stage: str, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    if first["type"] == "missing":
        return f"done['{stage}']{place}: missing"
    return f"done['{stage}']{place} = {first['input']!r:.60}: {first['msg'][:1].lower()}{first['msg'][1:]}"
