"""``report.html``: one page that shows everything a run found, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from curlfx.report.layers import COLUMNS, NUMBERS
from curlfx.report.text import headline, in_eight_bits, verdict


@dataclass(frozen=True)
class PageContent:
    """What the page shows, in JSON values, so that it can be drawn again from the files of a run.

    Attributes:
        summary: ``summary.json``.
        layers: Rows of ``layers.csv``.
        groups: Per coupling group ``id``, ``members``, ``width`` and ``kept``.
        frozen: Per frozen site ``site``, ``width``, ``reason`` and ``node``.
        checks: Per verification ``name``, ``error`` and ``bound``.
        notes: Sentences about what tracing lost and what the checks could not cover.
        timings: Per network ``name``, ``median``, ``p90``, ``p99``, ``min``, ``mean`` (ms) and ``cov``.
        measurement: How the timings were taken, in one sentence.
        images: Number of test images.
        padding: Block of the padded MACs.
        config: The resolved configuration as YAML.
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


def render(content: PageContent) -> str:
    """The page as HTML; everything in it is escaped."""
    template = files("curlfx.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    summary = content.summary
    device, versions = summary["device"], summary["versions"]
    return environment.from_string(template).render(
        vars(content),
        headline=headline(summary),
        verdict=verdict(summary),
        quantised=in_eight_bits(summary),
        gradual=summary.get("gradual"),
        target=", ".join(f"{key} {amount}" for key, amount in summary["target"].items()),
        environment=[(key, _shown(value)) for key, value in (*device.items(), *versions.items())],
        layer_keys=COLUMNS,
        numbers=NUMBERS,
    )


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
