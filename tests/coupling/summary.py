"""A coupling in a few words, as tests and their readers want it."""

import numpy as np

from curlfx.coupling import Coupling, Group

OUTPUT = "an output of the network"


def free(coupling: Coupling) -> dict[str, str]:
    """Per group its width, blocks and sites, such as ``"8 in 2 blocks: conv.weight[0] fc.weight[1]"``."""
    return {group.id: words(group) for group in coupling.groups}


def stays(coupling: Coupling) -> dict[str, str]:
    """Per layer whose output channels stay, how many and why, such as ``"5: an output of the network"``."""
    found: dict[str, list[str]] = {}
    for frozen in coupling.frozen:
        found.setdefault(str(frozen.sites[0]), []).append(f"{frozen.width}: {frozen.reason}")
    return {site: "; ".join(reasons) for site, reasons in found.items()}


def lines(coupling: Coupling) -> list[str]:
    """All of it, less what is an output of the network, such as ``"conv.weight[0] stays, 4: no rule for …"``."""
    stuck = {site: text for site, text in stays(coupling).items() if not text.endswith(OUTPUT)}
    return [*free(coupling).values(), *(f"{site} stays, {text}" for site, text in stuck.items())]


def words(group: Group) -> str:
    """Width, blocks, whether statistics change, and sites of one group."""
    blocks = "" if group.blocks is None else f" in {np.unique(group.blocks).size} blocks"
    mark = ", statistics" if group.statistics_change else ""
    return f"{group.width}{blocks}{mark}: {' '.join(map(str, group.sites))}"
