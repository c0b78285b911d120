"""What ``inspect`` and ``explain`` show, as JSON values: groups with their price, what stays and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, Explanation, Group, Pin
from curlfx.graph.source import where
from curlfx.graph.traced import TracedModel


def inspection(model: str, traced: TracedModel, coupling: Coupling) -> dict[str, Any]:
    """Groups, what is frozen and ops without a rule.

    Units: MACs for one image; per channel, of the intact network; ``free_share`` in [0, 1].
    """
    cost = CostModel(traced, coupling)
    nodes = {node.name: node for node in traced.graph.nodes}
    return {
        "model": model,
        "macs": cost.dense.macs,
        "params": cost.dense.params,
        "channels": coupling.total,
        "frozen_channels": sum(frozen.width for frozen in coupling.frozen),
        "free_share": coupling.free_share,
        "notes": list(traced.notes),
        "groups": [group_values(group, cost) for group in coupling.groups],
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
        "unsupported": [{"op": one.op, "node": one.node, "source": one.where} for one in coupling.unsupported],
    }


def group_values(group: Group, cost: CostModel) -> dict[str, Any]:
    """One group, and what one channel of it costs."""
    saving = cost.per_channel(group.id)
    return {
        "id": group.id,
        "width": group.width,
        "blocks": block_count(group),
        "whole_blocks": group.whole_blocks,
        "statistics_change": group.statistics_change,
        "macs_per_channel": saving.macs,
        "params_per_channel": saving.params,
        "members": [str(site) for site in group.sites],
    }


def block_count(group: Group) -> int | None:
    """In how many blocks a group's channels lie; None where in none."""
    return None if group.blocks is None else int(group.blocks.max()) + 1 - int(group.blocks.min())


def frozen_by_reason(frozen: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``frozen`` of an `inspection`, one entry per reason: channels, sites, and the first node that says so."""
    found: dict[str, dict[str, Any]] = {}
    for one in frozen:
        entry = {"reason": one["reason"], "width": 0, "sites": [], "node": one["node"], "source": one["source"]}
        entry = found.setdefault(one["reason"], entry)
        entry["width"] += one["width"]
        entry["sites"] += one["sites"]
    return sorted(found.values(), key=lambda entry: -int(entry["width"]))


def explanations(found: Sequence[Explanation], coupling: Coupling, cost: CostModel) -> list[dict[str, Any]]:
    """Sites with their groups and the reasons why channels stay."""
    return [
        {
            "site": one.place.site,
            "width": one.place.width,
            "role": one.place.role,
            "groups": [
                {"channels": count, **group_values(coupling.group(name), cost)}
                for name, count in one.place.groups.items()
            ],
            "frozen": [_pin_values(pin) for pin in one.pins],
        }
        for one in found
    ]


def _pin_values(pin: Pin) -> dict[str, Any]:
    return {
        "width": pin.width,
        "reason": pin.reason,
        "node": pin.node,
        "op": pin.op,
        "source": pin.where,
        "path": [vars(step) for step in pin.path],
        "also": list(pin.others),
    }
