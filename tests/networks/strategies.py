"""Hypothesis strategies: random networks, and random keep sets for the coupling groups of one."""

import numpy as np
from hypothesis import strategies as st

from curlfx.coupling import Coupling, Group
from tests.networks.composed import ACTIVATIONS, BLOCKS, NORMS, Recipe, Step

__all__ = ["networks", "plans", "steps"]


def steps() -> st.SearchStrategy[Step]:
    """One block; the simplest is a convolution with BatchNorm and ReLU."""
    return st.builds(
        Step,
        kind=st.sampled_from(list(BLOCKS)),
        width=st.integers(2, 6),
        norm=st.sampled_from(list(NORMS)),
        activation=st.sampled_from(list(ACTIVATIONS)),
        number=st.sampled_from([2, 1, 3, 4]),
    )


def networks(max_depth: int = 8) -> st.SearchStrategy[Recipe]:
    """Recipes of 1 to `max_depth` blocks."""
    return st.builds(
        Recipe,
        stem=st.integers(2, 8),
        steps=st.lists(steps(), min_size=1, max_size=max_depth).map(tuple),
        head=st.sampled_from(["pool", "flatten", "dense", "two"]),
        seed=st.integers(0, 3),
    )


@st.composite
def plans(draw: st.DrawFn, coupling: Coupling) -> dict[str, tuple[int, ...]]:
    """A keep set per group of a random subset of the groups: equal counts in every block, any channels."""
    keep: dict[str, tuple[int, ...]] = {}
    for group in coupling.groups:
        if group.width > 1 and draw(st.booleans()):
            keep[group.id] = _draw_keep(draw, group)
    return keep


def _draw_keep(draw: st.DrawFn, group: Group) -> tuple[int, ...]:
    blocks = np.zeros(group.width, dtype=np.int64) if group.blocks is None else np.asarray(group.blocks)
    numbers, sizes = np.unique(blocks, return_counts=True)
    count = draw(st.integers(1, int(sizes.min())))
    seed = draw(st.integers(0, 255))
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for number in numbers:
        positions = np.flatnonzero(blocks == number)
        chosen = positions[:count] if seed == 0 else generator.choice(positions, count, replace=False)
        kept.extend(int(position) for position in chosen)
    return tuple(sorted(kept))
