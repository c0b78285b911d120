"""Commands that look at a network and change nothing: ``inspect`` and ``explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curlfx.cli.document import print_json
from curlfx.cli.network import Classes, Frozen, Model, Shape, open_coupling, open_network
from curlfx.cli.tables import show_table
from curlfx.files import require_writable
from curlfx.report.text import count, folded

if TYPE_CHECKING:
    from curlfx.coupling.network import Step

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with every member of every group.")]
SITE_HELP = "a layer, a parameter, or one axis of it: layer1.0.conv1, layer1.0.conv1.weight, layer1.0.conv1.weight[0]"
NAMES_SHOWN = 12


def inspect(
    model: Model,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    drawing: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="draw the coupling graph as well")] = None,
    as_json: AsJson = False,
) -> None:
    """Show coupling groups, and what is frozen and why.

    With what one channel of each group costs.

    For example:

        curlfx inspect torchvision:resnet18

        curlfx inspect net.py:network --shape 3,64,64 --drawing net.svg
    """
    from curlfx.report.drawing import draw
    from curlfx.report.inspection import inspection

    if drawing is not None:
        require_writable(drawing)
    traced = open_network(model, shape=shape, classes=classes)
    coupling = open_coupling(traced, ignore)
    if drawing is not None:
        draw(coupling, drawing, title=model)
    found = inspection(model, traced, coupling)
    if as_json:
        print_json(found)
        return
    print(f"{model}: {count(found['macs'])} MACs, {count(found['params'])} parameters")
    for note in found["notes"]:
        print(f"note: {note}")
    _show_groups(found)
    _show_frozen(found)
    _show_unsupported(found["unsupported"])
    if drawing is not None:
        print(f"\n{drawing}")


def explain(
    model: Model,
    a: Annotated[str, typer.Argument(metavar="SITE", help=SITE_HELP)],
    b: Annotated[str | None, typer.Argument(metavar="[SITE]", help="another one, to see why the two are tied")] = None,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show why two layers are tied, or what one is tied to.

    Two: the shortest chain of operations between them, with the lines of the source. One: the groups of its channels,
    what one channel costs, and why channels stay.

    For example:

        curlfx explain torchvision:resnet18 layer1.0.conv1

        curlfx explain torchvision:resnet18 layer1.0.conv2 layer1.1.conv2
    """
    from curlfx.cost import CostModel
    from curlfx.coupling import explain as explain_site
    from curlfx.report.inspection import explanations

    traced = open_network(model, shape=shape, classes=classes)
    coupling = open_coupling(traced, ignore)
    if b is not None:
        steps = coupling.why(a, b)
        if as_json:
            print_json([vars(step) for step in steps])
            return
        print("\n".join(_chain(steps)) if steps else f"{a} and {b} are the same site")
        return
    found = explanations(explain_site(coupling, a), coupling, CostModel(traced, coupling))
    if as_json:
        print_json(found)
    else:
        print("\n\n".join(_told(site) for site in found))


def _show_groups(found: dict[str, Any]) -> None:
    rows = [
        (
            group["id"],
            str(group["width"]),
            str(len(group["members"])),
            "" if group["blocks"] is None else str(group["blocks"]),
            count(group["macs_per_channel"]),
            count(group["params_per_channel"]),
            _remarks(group),
        )
        for group in found["groups"]
    ]
    share = f"{found['free_share']:.1%} of what layers compute"
    title = f"{len(rows)} coupling groups, {found['channels']} channels, {share}"
    header = ("group", "width", "members", "blocks", "MACs/channel", "params/channel", "notes")
    show_table(header, rows, title=title, text=(0, 6))


def _remarks(group: dict[str, Any]) -> str:
    remarks = {"whole blocks": group["whole_blocks"], "statistics change": group["statistics_change"]}
    return ", ".join(remark for remark, holds in remarks.items() if holds)


def _show_frozen(found: dict[str, Any]) -> None:
    from curlfx.report.inspection import frozen_by_reason

    rows = []
    for entry in frozen_by_reason(found["frozen"]):
        place = "  ".join(filter(None, (entry["node"], entry["source"])))
        sites = folded(entry["sites"])
        cells = [entry["reason"], str(entry["width"]), str(len(entry["sites"])), place]
        rows += [(*(cells if not at else [""] * len(cells)), name) for at, name in enumerate(_first(sites))]
    title = f"\nfrozen: {found['frozen_channels']} channels of {len(found['frozen'])} layers"
    show_table(("reason", "channels", "layers", "(first) node", "where"), rows, title=title, text=(0, 3, 4))


def _show_unsupported(unsupported: list[dict[str, str]]) -> None:
    if not unsupported:
        return
    rows = [(one["op"], one["node"], one["source"]) for one in unsupported]
    show_table(("op without a rule", "node", "source"), rows, title="\nops without a rule freeze", text=(0, 1, 2))


def _chain(steps: Sequence[Step]) -> list[str]:
    lines = []
    for number, step in enumerate(steps, start=1):
        details = f" ({step.op})" if step.op else ""
        lines.append(f"{number}. {step.a}  ~  {step.b}")
        lines.append(
            f"   by {step.node}{details}  {step.where}".rstrip() if step.node else "   as channels of one block"
        )
    return lines


def _told(site: dict[str, Any]) -> str:
    """One site in words."""
    lines = [f"{site['site']}: {site['role']} {site['width']} channels"]
    for group in site["groups"]:
        lines.append(f"  {group['channels']} in group {group['id']}: {', '.join(_traits(group))}")
        members = [name for name in group["members"] if name != site["site"]]
        lines += [f"    {name}" for name in _first([f"with {name}" for name in folded(members)])]
    for pin in site["frozen"]:
        place = "  ".join(filter(None, (pin["node"] and f"at {pin['node']}", pin["op"], pin["source"])))
        lines.append(f"  {pin['width']} stay: {pin['reason']}" + (f"  ({place})" if place else ""))
        for step in pin["path"]:
            lines.append(f"    tied to {step['b']}  by {step['node']}  {step['where']}".rstrip())
        lines += [f"    {reason}" for reason in _first([f"also: {reason}" for reason in pin["also"]])]
    return "\n".join(lines)


def _traits(group: dict[str, Any]) -> list[str]:
    traits = [f"width {group['width']}"]
    if group["blocks"] is not None:
        traits.append(f"in {group['blocks']} blocks that keep equal counts")
    unit = "block" if group["whole_blocks"] else "channel"
    price = f"{count(group['macs_per_channel'])} MACs, {count(group['params_per_channel'])} parameters"
    remark = _remarks(group)
    return [*traits, f"one {unit} is {price}", *([remark] if remark else [])]


def _first(names: Sequence[str]) -> list[str]:
    """As many names as can be read, and how many are left."""
    shown = list(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else [*shown, f"… and {len(names) - NAMES_SHOWN} more"]
