"""What the page shows, as JSON values, so that it can be drawn again from the files of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PageContent:
    """Everything on the page; a part without data is left out of it.

    Attributes:
        summary: ``summary.json``; accuracies and latencies may be missing.
        layers: Rows of ``layers.csv``.
        groups: Per coupling group ``id``, ``members``, ``width`` and ``kept``.
        frozen: Per frozen site ``site``, ``width``, ``reason`` and ``node``.
        checks: Per verification ``name``, ``error`` and ``bound``.
        notes: Sentences about what tracing lost and what the checks could not cover.
        timings: Per network ``name``, ``median``, ``p10``, ``p90``, ``p99``, ``min``, ``mean`` (ms) and ``cov``.
        measurement: How the timings were taken, in one sentence.
        warnings: Sentences about what makes them doubtful.
        images: Number of test images.
        padding: Block of the padded MACs.
        config: The resolved configuration as YAML.
        command: What does the same run again, for a shell.
        widths: Per layer that makes channels ``layer``, ``before`` and ``after``, in network order.
        scores: Scores by coupling group, as the criterion found them for the dense network.
        keep: Positions that stay, by coupling group; a group that is not named stays whole.
        outline: The coupling graph, as `curlfx.report.outline.as_values` makes it.
        epochs: Per finished epoch of every training ``stage``, ``epoch``, ``loss``, ``accuracy`` (on the training
            images), ``validation``, ``lr`` and ``seconds``, in order.
        operators: By network, per operator ``op_type``, ``milliseconds``, ``share`` and ``nodes``.
        remarks: Sentences about these.
        search: ``search.json``.
    """

    summary: Mapping[str, Any]
    layers: Sequence[Mapping[str, str]]
    groups: Sequence[Mapping[str, Any]]
    frozen: Sequence[Mapping[str, Any]]
    checks: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    timings: Sequence[Mapping[str, Any]]
    measurement: str
    images: int
    padding: int
    config: str
    warnings: Sequence[str] = ()
    command: str = ""
    widths: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    outline: Mapping[str, Any] | None = None
    epochs: Sequence[Mapping[str, Any]] = ()
    operators: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    search: Mapping[str, Any] | None = None
