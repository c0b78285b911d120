"""The same figures as lines of text: for the terminal, the log and the head of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "–"
"""Stands for a number that is not there."""
_NUMBER = re.compile(r"\d+")


def headline(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (quantity, dense, slim, change) of the table that ends a run and opens its report.

    What was not measured, or is no finite number, is a dash.
    """
    dense, slim = summary["dense"], summary["slim"]
    before, after = (number(network.get("accuracy")) for network in (dense, slim))
    rows = [("accuracy", shown(before, ".4f"), shown(after, ".4f"), shown(after - before, "+.4f"))]
    for key, title in (("macs", "MACs"), ("padded_macs", "padded MACs"), ("params", "parameters")):
        rows.append((title, count(dense[key]), count(slim[key]), share(slim[key], dense[key])))
    sizes = dense["size_bytes"], slim["size_bytes"]
    rows.append(("ONNX file", f"{sizes[0] / 1e6:.3g} MB", f"{sizes[1] / 1e6:.3g} MB", share(sizes[1], sizes[0])))
    for key in ("median", "p90", "p99"):
        times = latency(dense, key), latency(slim, key)
        ratio = times[0] / times[1] if times[1] > 0 else math.nan
        change = shown(ratio, ".2f", "x faster") if key == "median" else ""  # tails are too few runs for a ratio
        before_ms, after_ms = (shown(time, ".3f", " ms") for time in times)
        rows.append((f"latency {key}", before_ms, after_ms, change))
    return rows


def in_eight_bits(summary: Mapping[str, Any]) -> str | None:
    """One line on the quantised file; None where there is none."""
    found = summary.get("int8")
    if found is None:
        return None
    size, median = found["size_bytes"] / 1e6, found["latency_ms"]["median"]
    ratio = f"{found['speedup']:.2f}x the speed of the dense network"
    return f"accuracy {found['accuracy']:.4f}, {size:.3g} MB, latency {median:.3f} ms, {ratio}"


def verdict(summary: Mapping[str, Any]) -> str:
    """One line: what was verified and how far apart the networks were."""
    found = summary["verification"]
    word = "passed" if found["passed"] else "FAILED"
    return f"{word} (gated vs slim {found['gated_vs_slim']:.1e}, torch vs onnx {found['torch_vs_onnx']:.1e})"


def number(value: Any) -> float:
    """``value`` as a number, NaN where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def latency(network: Mapping[str, Any], key: str) -> float:
    """One figure of a network's latency in milliseconds; NaN where it was not measured."""
    return number((network.get("latency_ms") or {}).get(key))


def shown(value: float, form: str, unit: str = "") -> str:
    """A number in the given format with its unit; a dash where it is not finite."""
    return f"{value:{form}}{unit}" if math.isfinite(value) else MISSING


def percent(value: float) -> str:
    """A share in percent, to two digits behind the point; a dash where it is not finite."""
    return shown(100 * value, ".2f", " %")


def count(number: float) -> str:
    """A number in three digits with its unit: ``4.09 G``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return shown(number, ".0f")


def share(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def columns(rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,)) -> list[str]:
    """Lines with the cells of ``rows`` under each other; columns in ``text`` to the left, the others to the right."""
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        lines.append(
            "  ".join(cell.ljust(width) if at in text else cell.rjust(width) for at, cell, width in cells).rstrip()
        )
    return lines


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in their numbers only as one, like ``layers.{0-11}.fc.weight[0]``; in order of the first.

    Where several numbers vary, and not in all combinations, the count stands behind it.
    """
    alike: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        name, bracket, axis = name.partition("[")
        key = _NUMBER.sub("\0", name) + bracket + axis
        alike.setdefault(key, []).append(tuple(int(number) for number in _NUMBER.findall(name)))
    return [_fold(key, numbers) for key, numbers in alike.items()]


def _fold(key: str, numbers: Sequence[tuple[int, ...]]) -> str:
    variants = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    for values in variants:
        key = key.replace("\0", _ranges(values), 1)
    combinations = 1
    for values in variants:
        combinations *= len(values)
    return key if combinations == len(numbers) else f"{key} ({len(numbers)} of these)"


def _ranges(values: Sequence[int]) -> str:
    """``3`` for one value, ``{0-2,5}`` for several."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"
