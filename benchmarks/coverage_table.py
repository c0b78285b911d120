"""Rows of the coverage benchmark as a table, and what they say together."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from coverage_row import CANNOT, STAGES, Row, cannot, free_share
from tables import fixed, markdown, percent, scientific

__all__ = ["COVERED", "ranking", "summary", "table"]

COVERED = 0.95
"""A family is covered from this share of free channels on, among those that could go."""


def _reasons(row: Row) -> str:
    """The three most frequent reasons; those in brackets cannot be helped."""
    found = list(row.get("reasons", {}).items())[:3]
    return "; ".join(f"({reason}: {count})" if cannot(reason) else f"{reason}: {count}" for reason, count in found)


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row["model"],
    "family": lambda row: row["kind"],
    "nodes": lambda row: str(row.get("nodes", "")),
    "groups": lambda row: str(row.get("groups", "")),
    "channels": lambda row: str(row.get("channels", "")),
    "free": lambda row: percent(free_share(row)) if "reasons" in row else "",
    "frozen": lambda row: percent(row.get("frozen")),
    "inside": lambda row: percent(row.get("frozen_inside")),
    "why frozen (channels)": _reasons,
    "MACs left": lambda row: percent(row["slim_macs"] / row["macs"]) if row.get("macs") else "",
    "gated vs slim": lambda row: scientific(row.get("gated_vs_slim")),
    "torch vs onnx": lambda row: scientific(row.get("torch_vs_onnx")),
    **{f"{stage} s": lambda row, stage=stage: fixed(row.get("seconds", {}).get(stage)) for stage in STAGES},
    "GiB": lambda row: fixed(row.get("peak_gib"), 1),
    "float": lambda row: ", ".join(f"{name} inside" for name in row.get("lower_inside", ())),
    "batch": lambda row: "fixed" if "fixed_batch" in row else "",
    "statistics": lambda row: f"{row['statistics_change']} groups" if row.get("statistics_change") else "",
    "result": lambda row: f"FAIL {row['failure']}" if "failure" in row else "ok",
}


def table(rows: Sequence[Row]) -> str:
    """The table, one row per model; columns that no row fills are left out."""
    cells = {name: [cell(row).replace("|", "/") for row in rows] for name, cell in _COLUMNS.items()}
    filled = [name for name in cells if any(cells[name])]
    return markdown(filled, [[cells[name][index] for name in filled] for index in range(len(rows))])


def summary(rows: Sequence[Row]) -> list[str]:
    """The lines below the table."""
    passed = [row for row in rows if "failure" not in row]
    return [f"{len(passed)} of {len(rows)} models passed.", *_stages(rows), *_errors(rows), *_times(rows), *_free(rows)]


def _stages(rows: Sequence[Row]) -> list[str]:
    """How far the models came."""
    reached = {
        "traced": sum("trace" in row.get("seconds", {}) for row in rows),
        "coupled": sum("reasons" in row for row in rows),
        "slimmed": sum("slim" in row.get("seconds", {}) for row in rows),
        "equal to gated": sum("gated_vs_slim" in row and "verify:" not in row.get("failure", "") for row in rows),
        "equal in onnxruntime": sum("torch_vs_onnx" in row and "failure" not in row for row in rows),
    }
    return [f"Of {len(rows)}: " + ", ".join(f"{count} {name}" for name, count in reached.items()) + "."]


def _errors(rows: Sequence[Row]) -> list[str]:
    lines = []
    exact = [row for row in rows if "gated_vs_slim" in row and not row["statistics_change"]]
    changed = [row for row in rows if "gated_vs_slim" in row and row["statistics_change"]]
    for rows_of_kind, words in ((exact, "without"), (changed, "with")):
        if rows_of_kind:
            worst = max(rows_of_kind, key=lambda row: float(row["gated_vs_slim"]))
            lines.append(
                f"Gated vs slim, {len(rows_of_kind)} models {words} normalisation across free channels: "
                f"worst {worst['gated_vs_slim']:.1e} ({worst['model']})."
            )
    lower = [row["model"] for row in rows if row.get("lower_inside")]
    if lower:
        lines.append(f"Compute partly in a lower float type, compared in float64 throughout: {', '.join(lower)}.")
    fixed_batch = [row["model"] for row in rows if "fixed_batch" in row]
    if fixed_batch:
        lines.append(f"Exported for the example's batch size only: {', '.join(fixed_batch)}.")
    onnx = [row for row in rows if "torch_vs_onnx" in row]
    if onnx:
        worst = max(onnx, key=lambda row: float(row["torch_vs_onnx"]))
        lines.append(
            f"Torch vs onnxruntime, {len(onnx)} models: worst {worst['torch_vs_onnx']:.1e} ({worst['model']}), "
            f"median {statistics.median(row['torch_vs_onnx'] for row in onnx):.1e}."
        )
    return lines


def _times(rows: Sequence[Row]) -> list[str]:
    coupled = [row for row in rows if "couple" in row.get("seconds", {})]
    if not coupled:
        return []
    stages = [stage for stage in ("trace", "couple", "slim") if any(stage in row["seconds"] for row in coupled)]
    total = {row["model"]: sum(row["seconds"].get(stage, 0.0) for stage in stages) for row in coupled}
    slowest = max(total, key=lambda model: total[model])
    couple = statistics.median(row["seconds"]["couple"] for row in coupled)
    line = (
        f"Trace to {stages[-1]}, CPU time on one thread: median {statistics.median(total.values()):.2f} s, "
        f"slowest {total[slowest]:.1f} s ({slowest}); coupling alone: median {couple:.3f} s."
    )
    return [line]


def _free(rows: Sequence[Row]) -> list[str]:
    """Free channels among those that could go, and how many models that covers."""
    free = {row["model"]: free_share(row) for row in rows if "reasons" in row}
    if not free:
        return []
    covered = [model for model, share in free.items() if share >= COVERED]
    least = min(free, key=lambda model: free[model])
    share = (
        f"Free channels among those that could go: median {statistics.median(free.values()):.1%}, "
        f"all in {sum(share == 1 for share in free.values())} models, least {free[least]:.1%} ({least})."
    )
    return [share, f"Covered ({COVERED:.0%} or more of them free): {len(covered)} of {len(rows)}."]


def ranking(rows: Sequence[Row]) -> str:
    """What is in the way, most frequent first: failures, reasons of freezes, ops without a rule, what cannot be helped.

    Units: models and channels per reason; a model counts as uncovered below :data:`COVERED`.
    """
    models: dict[str, list[Row]] = {}
    channels: Counter[str] = Counter()
    ops: dict[str, list[str]] = {}
    for row in rows:
        for reason, count in row.get("reasons", {}).items():
            models.setdefault(reason, []).append(row)
            channels[reason] += count
        for op in row.get("unsupported", ()):
            ops.setdefault(op, []).append(row["model"])
    gaps = sorted((reason for reason in models if not cannot(reason)), key=lambda reason: -_uncovered(models[reason]))
    lines = ["Failures:", *(f"  {row['model']}: {row['failure']}" for row in rows if "failure" in row)]
    lines += ["", "Reasons of freezes that rules could lift (uncovered models, models, channels):"]
    for reason in gaps:
        names = ", ".join(f"{row['model']} {free_share(row):.0%}" for row in models[reason])
        found = models[reason]
        lines.append(f"  {_uncovered(found):4d} {len(found):4d} {channels[reason]:8d}  {reason}: {names}")
    lines += ["", "Ops without a rule (models):"]
    lines += [f"  {len(ops[op]):4d}  {op}: {', '.join(ops[op])}" for op in sorted(ops, key=lambda op: -len(ops[op]))]
    lines += ["", "What cannot go (models, channels):"]
    for reason in (reason for reason in models if cannot(reason)):
        why = next(text for part, text in CANNOT.items() if part in reason)
        lines.append(f"  {len(models[reason]):4d} {channels[reason]:8d}  {reason} ({why})")
    lines += ["", "Models that are not covered:"]
    left = sorted((row for row in rows if "reasons" in row and free_share(row) < COVERED), key=free_share)
    lines += [f"  {free_share(row):6.1%}  {row['model']} ({row['kind']}): {_reasons(row)}" for row in left]
    return "\n".join(lines) + "\n"


def _uncovered(rows: Sequence[Row]) -> int:
    return sum(free_share(row) < COVERED for row in rows)
