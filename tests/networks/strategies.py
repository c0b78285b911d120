"""Random networks, and random keep sets for the coupling groups of one; drawn by hypothesis or by any other chooser."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from curlfx.coupling import Coupling, Group
from tests.networks.composed import HEADS, MAP_PARTS, PIXEL_PARTS, TOKEN_HEADS, TOKEN_PARTS, Recipe
from tests.networks.parts_attention import OnPixels
from tests.networks.parts_base import Part
from tests.networks.parts_tokens import Patches

__all__ = ["Choose", "draw_keep", "draw_recipe", "networks", "plans"]

# Picks one of some values; hypothesis shrinks towards the first.
Choose = Callable[[Sequence[Any]], Any]


def _often(kinds: Sequence[type[Part]]) -> list[type[Part]]:
    """Kinds as often as the longest list of their options, so that every option is met."""
    return [kind for kind in kinds for _ in range(max((len(values) for values in kind.options().values()), default=6))]


MAP_KINDS = {dims: _often([kind for kind in MAP_PARTS if dims in kind.dims]) for dims in (1, 2, 3)}
TOKEN_KINDS, PIXEL_KINDS = _often(TOKEN_PARTS), _often(PIXEL_PARTS)


def draw_part(choose: Choose, kinds: Sequence[type[Part]]) -> Part:
    """A part with any of its options; the simplest has all defaults."""
    kind = choose(kinds)
    if kind is OnPixels:
        return OnPixels(draw_part(choose, PIXEL_KINDS))
    return kind(**{name: choose(values) for name, values in kind.options().items()})


def draw_recipe(choose: Choose, max_depth: int = 12) -> Recipe:
    """A recipe of 1 to `max_depth` parts; every second one goes on over tokens."""
    depth = min(max_depth, choose((3, 1, 2, 4, 2, 3, 6, 12)))
    tokens = depth > 1 and choose((False, True))
    over_tokens = choose(range(1, depth)) if tokens else 0
    dims = choose((2, 2, 2, 1, 3))
    return Recipe(
        dims=dims,
        stem=choose((4, 2, 3, 5, 6, 7, 8)),
        steps=tuple(draw_part(choose, MAP_KINDS[dims]) for _ in range(depth - over_tokens - tokens)),
        patches=draw_part(choose, [Patches]) if tokens else None,
        token_steps=tuple(draw_part(choose, TOKEN_KINDS) for _ in range(over_tokens)),
        head=choose(TOKEN_HEADS if tokens else HEADS),
        seed=choose(range(256)),
    )


def draw_keep(choose: Choose, groups: Sequence[Group]) -> dict[str, tuple[int, ...]]:
    """A keep set: of every group nothing said, one channel, all of them, or any count; of every block as many."""
    keep: dict[str, tuple[int, ...]] = {}
    for group in groups:
        most = group.width if group.blocks is None else int(np.bincount(group.blocks).min())
        extent = choose(("any", "any", "any", "one", "all", "unsaid"))
        if extent != "unsaid":
            count = {"one": 1, "all": most}.get(extent) or choose(range(1, most + 1))
            keep[group.id] = _positions(group, count, choose(range(256)))
    return keep


def _positions(group: Group, count: int, seed: int) -> tuple[int, ...]:
    """`count` positions of every block, other ones in each; the first ones for seed 0."""
    blocks = np.zeros(group.width, dtype=np.int64) if group.blocks is None else np.asarray(group.blocks)
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for number in np.unique(blocks):
        inside = np.flatnonzero(blocks == number)
        chosen = inside[:count] if seed == 0 else generator.choice(inside, count, replace=False)
        kept.extend(int(position) for position in chosen)
    return tuple(sorted(kept))


def _chooser(draw: st.DrawFn) -> Choose:
    return lambda values: draw(st.sampled_from(values))


@st.composite
def networks(draw: st.DrawFn, max_depth: int = 12) -> Recipe:
    """`draw_recipe`, drawn by hypothesis."""
    return draw_recipe(_chooser(draw), max_depth)


@st.composite
def plans(draw: st.DrawFn, coupling: Coupling) -> dict[str, tuple[int, ...]]:
    """`draw_keep`, drawn by hypothesis."""
    return draw_keep(_chooser(draw), coupling.groups)
