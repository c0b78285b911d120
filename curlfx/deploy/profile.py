"""Where the time of one ONNX file goes: the time of every node of the graph that onnxruntime really runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from curlfx.deploy.session import check_feeds, open_session, run_session
from curlfx.errors import ConfigError, ModelError

_SUFFIX = "_kernel_time"
_RUN = "model_run"  # the event that onnxruntime writes behind the last node of a run
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
Event = Mapping[str, Any]


@dataclass(frozen=True)
class NodeTime:
    """One node of the optimised graph.

    Attributes:
        name: As onnxruntime calls it; the optimiser invents names (``ReorderInput_token_12``, ``relu_nchwc``).
        op_type: ``Conv``, ``FusedConv``, ``ReorderInput``, …
        provider: Who ran it, by onnxruntime's full name.
        milliseconds: Median over the runs (or another quantile); of a loop or branch with all that is inside it. On a
            GPU it is the time to start the node's kernels, which run on behind it.
        output_shape: Of the first output; None where onnxruntime names none. NCHWc channels are padded to the block.
        input_shapes: Of the inputs that are tensors, weights included.
    """

    name: str
    op_type: str
    provider: str
    milliseconds: float
    output_shape: tuple[int, ...] | None
    input_shapes: tuple[tuple[int, ...], ...] = ()


def profile(
    path: str | Path,
    feeds: Mapping[str, Any],
    *,
    provider: str = "cpu",
    threads: int = 1,
    runs: int = 20,
    warmup: int = 3,
    quantile: float = 0.5,
) -> tuple[NodeTime, ...]:
    """Time every node of the optimised graph on ``feeds``, in execution order, with the session of the benchmark.

    Timing every node costs time itself, and each has its own median: the sum is not the latency of the file.

    Args:
        feeds: An array for every input, by name.
        provider: As `curlfx.deploy.session.open_session`.
        threads: Likewise.
        runs: Runs the median is taken over.
        warmup: Runs before these.
        quantile: Of the runs, in place of the median; a low one is not disturbed by what interrupts a run now and then.

    Raises: ModelError for a file that is missing, damaged, refused, or fails on these inputs; ConfigError for a
        provider that is not there, a number out of range, or inputs of other names.
    """
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ConfigError(f"{name} = {value}: want {least} or more")
    path = Path(path)
    with TemporaryDirectory(prefix="curlfx-profile-") as folder:
        session = open_session(path, provider=provider, threads=threads, profile_to=Path(folder) / "profile")
        try:
            check_feeds(path, session, feeds)
            run_session(path, session, feeds, warmup + runs)
        finally:
            written = Path(session.end_profiling())
        events = json.loads(written.read_text())
    found = _runs(events)
    if len(found) != warmup + runs:
        raise ModelError(f"{path}: onnxruntime profiled {len(found)} of {warmup + runs} runs; want fewer runs")
    return _summarised(path, found[warmup:], quantile)


def _runs(events: Sequence[Event]) -> list[list[Event]]:
    """The node events of every complete run, in execution order; those inside a branch or loop belong to its event."""
    found: list[list[Event]] = []
    nodes: list[Event] = []
    for event in events:  # in the order of their ends
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            if event["args"]["op_name"] in _CONTROL_FLOW:
                nodes = [node for node in nodes if node["ts"] + node["dur"] <= event["ts"]]
            nodes.append(event)
        elif event.get("cat") == "Session" and event["name"] == _RUN:
            found.append(nodes)
            nodes = []
    return found


def _summarised(path: Path, runs: Sequence[Sequence[Event]], quantile: float) -> tuple[NodeTime, ...]:
    """One entry per node. Raises: ModelError when the runs did not execute the same nodes."""
    names = [[node["name"] for node in run] for run in runs]
    if any(other != names[0] for other in names):
        raise ModelError(f"{path}: does not run the same nodes every time on the same inputs; it cannot be profiled")
    microseconds = np.quantile([[node["dur"] for node in run] for run in runs], quantile, axis=0)
    return tuple(_node(event, time / 1000) for event, time in zip(runs[0], microseconds.tolist(), strict=True))


def _node(event: Event, milliseconds: float) -> NodeTime:
    about = event["args"]
    outputs = _shapes(about.get("output_type_shape", ()))
    return NodeTime(
        name=event["name"].removesuffix(_SUFFIX),
        op_type=about["op_name"],
        provider=about.get("provider", ""),
        milliseconds=milliseconds,
        output_shape=outputs[0] if outputs else None,
        input_shapes=_shapes(about.get("input_type_shape", ())),
    )


def _shapes(values: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    """Of ``[{"float": [1, 3, 8, 8]}, …]``."""
    return tuple(tuple(shape) for value in values for shape in value.values())
