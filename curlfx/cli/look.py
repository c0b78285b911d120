"""Commands that look at a network and change nothing: ``inspect`` and ``explain``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curlfx.cli.network import Classes, Frozen, Model, Shape, open_coupling, open_network
from curlfx.cli.tables import show_table
from curlfx.report.text import count

if TYPE_CHECKING:
    from curlfx.cost import CostModel
    from curlfx.coupling import Coupling, Group
    from curlfx.graph.traced import TracedModel


def inspect(
    model: Model,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every member of every group.")] = False,
) -> None:
    """Show coupling groups, and what is frozen and why.

    With what one channel of each group costs.
    """
    traced = open_network(model, shape=shape, classes=classes)
    coupling = open_coupling(traced, ignore)
    found = description(model, traced, coupling)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{model}: {count(found['macs'])} MACs, {count(found['params'])} parameters")
    for note in found["notes"]:
        print(f"note: {note}")
    _show_groups(found["groups"])
    _show_frozen(found["frozen"])


def explain(
    model: Model,
    a: Annotated[str, typer.Argument(metavar="SITE", help="a parameter, like layer1.0.conv1.weight or NAME[AXIS]")],
    b: Annotated[str, typer.Argument(metavar="SITE", help="another one")],
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
) -> None:
    """Show why two layers are tied.

    The shortest chain of operations between them, with the lines of the source.
    """
    coupling = open_coupling(open_network(model, shape=shape, classes=classes), ignore)
    steps = coupling.why(a, b)
    if not steps:
        print(f"{a} and {b} are the same site")
    for number, step in enumerate(steps, start=1):
        print(f"{number}. {step.a}  ~  {step.b}")
        print(f"   by {step.node} ({step.op})" + (f"  {step.where}" if step.where else ""))


def description(model: str, traced: TracedModel, coupling: Coupling) -> dict[str, Any]:
    """What ``inspect`` shows, as JSON values.

    Units: MACs for one image; per channel, of the intact network.
    """
    from curlfx.cost import CostModel
    from curlfx.graph.source import where

    cost = CostModel(traced, coupling)
    nodes = {node.name: node for node in traced.graph.nodes}
    return {
        "model": model,
        "macs": cost.dense.macs,
        "params": cost.dense.params,
        "channels": coupling.total,
        "notes": list(traced.notes),
        "groups": [_group(group, cost) for group in coupling.groups],
        "frozen": [
            {
                "sites": [str(site) for site in frozen.sites],
                "width": frozen.width,
                "reason": frozen.reason,
                "node": frozen.node,
                "source": where(nodes[frozen.node]) if frozen.node in nodes else "",
            }
            for frozen in coupling.frozen
        ],
    }


def _group(group: Group, cost: CostModel) -> dict[str, Any]:
    saving = cost.per_channel(group.id)
    return {
        "id": group.id,
        "width": group.width,
        "blocks": None if group.blocks is None else int(group.blocks.max()) + 1 - int(group.blocks.min()),
        "statistics_change": group.statistics_change,
        "macs_per_channel": saving.macs,
        "params_per_channel": saving.params,
        "members": [str(site) for site in group.sites],
    }


def _show_groups(groups: list[dict[str, Any]]) -> None:
    rows = [
        (
            group["id"],
            str(group["width"]),
            str(len(group["members"])),
            "" if group["blocks"] is None else str(group["blocks"]),
            count(group["macs_per_channel"]),
            count(group["params_per_channel"]),
        )
        for group in groups
    ]
    title = f"{len(groups)} coupling groups, {sum(group['width'] for group in groups)} channels"
    show_table(("group", "width", "members", "blocks", "MACs/channel", "params/channel"), rows, title=title)


def _show_frozen(frozen: list[dict[str, Any]]) -> None:
    rows = [
        (
            ", ".join(row["sites"]),
            str(row["width"]),
            row["reason"],
            "  ".join(filter(None, (row["node"], row["source"]))),
        )
        for row in frozen
    ]
    show_table(("frozen", "width", "reason", "node"), rows, title=f"\n{len(rows)} frozen", text=(0, 2, 3))
