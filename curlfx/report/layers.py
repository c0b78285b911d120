"""``layers.csv``: every parameter before and after, the groups it is coupled to, and why the rest is frozen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.fx import Node

from curlfx.cost.counting import Alive
from curlfx.cost.model import CostModel
from curlfx.coupling import Coupling, Site
from curlfx.coupling.vectors import Ints
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


def width_rows(coupling: Coupling, rows: Iterable[Mapping[str, str]], alive: Alive) -> list[dict[str, Any]]:
    """Per layer the channels that it makes, before and after, in the order of its `layer_rows`.

    Shapes: alive ``(N + 1,)`` as `Coupling.alive` makes it.
    """
    made = _made(coupling)
    left = coupling.cells.alive(alive)[coupling.cells.number]
    names = [row["layer"] for row in rows if row["layer"] in made]
    return [
        {"layer": name.removesuffix(".weight"), "before": made[name].size, "after": int(left[made[name]].sum())}
        for name in names
    ]


def _made(coupling: Coupling) -> dict[str, Ints]:
    """Labels of the channels that a layer makes, by its weight.

    An axis of the weight has them but where it is that of one group alone, in grouped transposed convolutions: there
    they are the node's own.
    """
    nodes = coupling.graph.graph["chains"].nodes
    found: dict[str, Ints] = {}
    for site, data in coupling.graph.nodes(data=True):
        if data["made"]:
            weights = [site.rpartition("[")[0]] if data["site"] else _weights(nodes[data["node"]])
            for name in weights:
                found.setdefault(name, data["labels"])
    return found


def _weights(node: Node) -> list[str]:
    """The parameter that a convolution reads as its weight."""
    return [str(one.target) for one in node.all_input_nodes[1:2] if one.op == "get_attr"]


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
