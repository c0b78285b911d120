"""Presets: named sets of values that stand below everything that is said explicitly."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

PresetName = Literal["fast", "default", "thorough"]

PRESETS: Mapping[PresetName, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {
            "importance": "kl-fast",
            "proxy_images": 64,
            "latency_probes": 8,
            "train": {"epochs": 3},
            "recovery": {"epochs": 2},
            "search": {"train": {"epochs": 5}, "generations": 5},
            "bench": {"rounds": 10, "runs": 3, "max_seconds": 30.0},
        },
        "default": {},
        "thorough": {
            "proxy_images": 1024,
            "latency_probes": 48,
            "train": {"epochs": 30},
            "recovery": {"epochs": 30, "recalibrate_batches": 100},
            "search": {"train": {"epochs": 60}, "generations": 40},
            "bench": {"rounds": 100, "max_seconds": 600.0},
        },
    }
)
"""Values by preset: to see in a minute whether a job works; as documented; and when time matters less than accuracy."""


def with_preset(given: object) -> object:
    """Settings with those of their preset filled in where they say nothing.

    A recipe that is named says how long the recovery is, so the preset then leaves the recovery alone; an earlier run
    that goes on has its own settings. What is no mapping, or names no preset, is left for the checks.
    """
    if not isinstance(given, Mapping) or given.get("resume") is not None:
        return given
    name = given.get("preset")
    values = PRESETS.get(name) if isinstance(name, str) else None  # type: ignore[call-overload]
    if not values:
        return given
    recovery = given.get("recovery", {})
    named = not isinstance(recovery, Mapping) or "recipe" in recovery
    return above(given, {key: value for key, value in values.items() if not (named and key == "recovery")})


def above(given: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings on top of others."""
    result = dict(below)
    for key, value in given.items():
        old = result.get(key)
        result[key] = above(value, old) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
