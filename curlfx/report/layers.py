"""``layers.csv``: every parameter before and after, the groups it is coupled to, and why the rest is frozen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curlfx.cost.counting import Alive
from curlfx.cost.model import CostModel
from curlfx.coupling import Coupling, Site, places
from curlfx.graph.traced import TracedModel

COLUMNS = (
    "layer",
    "shape_before",
    "shape_after",
    "groups",
    "frozen",
    "params_before",
    "params_after",
    "macs_before",
    "macs_after",
)
NUMBERS = frozenset({"params_before", "params_after", "macs_before", "macs_after"})


def layer_rows(
    before: TracedModel, after: TracedModel, coupling: Coupling, cost: CostModel, alive: Alive
) -> list[dict[str, str]]:
    """One row per parameter that the graph reads, then one per product of activations (attention and the like).

    Shapes: alive ``(N + 1,)`` as `Coupling.alive` makes it.
    Units: MACs for one image, counted at the weight that they multiply with.
    """
    everything = cost.everything()
    params = cost.tensor_params(everything), cost.tensor_params(alive)
    macs = cost.layer_macs(everything), cost.layer_macs(alive)
    groups = _by_parameter((site, group.id) for group in coupling.groups for site in group.sites)
    reasons = _by_parameter((site, frozen.reason) for frozen in coupling.frozen for site in frozen.sites)
    rows = []
    for name in [*params[0], *(layer for layer in macs[0] if layer not in params[0])]:
        stored = name in params[0]
        row = {
            "layer": name,
            "shape_before": _shape(before, name) if stored else "",
            "shape_after": _shape(after, name) if stored else "",
            "groups": "; ".join(groups.get(name, ())),
            "frozen": "; ".join(reasons.get(name, ())),
            "params_before": str(params[0].get(name, 0)),
            "params_after": str(params[1].get(name, 0)),
            "macs_before": str(macs[0].get(name, 0)),
            "macs_after": str(macs[1].get(name, 0)),
        }
        rows.append(row)
    return rows


def group_rows(coupling: Coupling, keep: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Per coupling group its name, number of members, width, and channels kept."""
    return [
        {
            "id": group.id,
            "members": len(group.sites),
            "width": group.width,
            "kept": len(keep[group.id]) if group.id in keep else group.width,
        }
        for group in coupling.groups
    ]


def width_rows(coupling: Coupling, rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Per layer the channels that it makes, before and after, by its `layer_rows`, in their order."""
    made: dict[str, int] = {}
    for site, place in places(coupling).items():
        name, bracket, axis = site.removesuffix("]").rpartition("[")
        if bracket and place.role == "makes":
            made.setdefault(name, int(axis))
    found = []
    for row in rows:
        if row["layer"] in made:
            at = made[row["layer"]]
            before, after = (int(row[key].split("x")[at]) for key in ("shape_before", "shape_after"))
            found.append({"layer": row["layer"].removesuffix(".weight"), "before": before, "after": after})
    return found


def frozen_rows(coupling: Coupling) -> list[dict[str, Any]]:
    """Per frozen site its width, the reason, and the node that froze it."""
    return [
        {"site": f"{site.name} axis {site.axis}", "width": frozen.width, "reason": frozen.reason, "node": frozen.node}
        for frozen in coupling.frozen
        for site in frozen.sites
    ]


def to_csv(rows: Iterable[Mapping[str, str]]) -> str:
    """The rows as CSV text with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def from_csv(text: str) -> list[dict[str, str]]:
    """Rows that `to_csv` wrote."""
    return list(csv.DictReader(io.StringIO(text)))


def _shape(traced: TracedModel, name: str) -> str:
    return "x".join(str(size) for size in traced.parameter(name).shape) or "1"


def _by_parameter(texts: Iterable[tuple[Site, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for site, text in texts:
        found.setdefault(site.name, []).append(f"axis {site.axis}: {text}")
    return found
