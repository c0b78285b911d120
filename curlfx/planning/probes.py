"""Keep sets to measure: networks whose every group has a width of its own."""

from __future__ import annotations

import numpy as np

from curlfx.coupling import Coupling
from curlfx.planning.units import first_channels, kept_positions, make_units

Keep = dict[str, tuple[int, ...]]
LEAST, SPREAD = 0.3, 0.35  # kept share of the narrowest network, and how far a group may be from its network's share
TRIES = 20  # draws of a network until it is one that is not there yet


def random_widths(coupling: Coupling, count: int, *, round_to: int, seed: int) -> list[Keep]:
    """Keep sets of random widths for a network, from nearly whole to a tenth of its MACs.

    Widths are multiples of ``round_to`` as those of a plan are. The first channels of a group stay, those of each of
    its blocks. None of them is whole or comes twice, as far as the widths of the network allow.
    """
    units = make_units(coupling, first_channels(coupling))
    generator = np.random.default_rng(seed)
    levels = generator.permutation(np.linspace(LEAST, 1.0, count))
    steps = units.steps(round_to)

    def drawn(level: float) -> Keep:
        shares = np.clip(level + generator.uniform(-SPREAD, SPREAD, units.sizes.size), 0.1, 1.0)
        wanted = np.minimum((units.sizes * (1 - shares)).astype(np.int64), units.sizes - 1)
        return kept_positions(coupling, units, units.rounded(wanted, steps))

    found: list[Keep] = []
    for level in levels.tolist():
        keep = drawn(level)
        for _ in range(TRIES):
            if keep and keep not in found:
                break
            keep = drawn(level)
        found.append(keep)
    return found
