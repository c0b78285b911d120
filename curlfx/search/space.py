"""The search space: which widths every coupling group may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from curlfx.coupling import Coupling, GroupId
from curlfx.errors import ConfigError
from curlfx.importance.scores import Scores
from curlfx.planning.units import Ints, Units, first_channels, kept_positions, make_units

Genome = tuple[int, ...]
"""Kept removal units of every group: the best-scored ones stay."""
Alive = npt.NDArray[np.bool_]
WIDE = 128
"""Widest group from which on widths are multiples of 8 by default."""


@dataclass(frozen=True, eq=False)
class Space:
    """One gene per coupling group, and the widths that it may take.

    Attributes:
        coupling: The groups.
        units: What goes in one step: a channel, or one channel of every block.
        grids: Numbers of units that each group may keep, ascending; the last is all of them.
        divisor: Kept channels are multiples of this, of less where a group is narrow.
    """

    coupling: Coupling
    units: Units
    grids: tuple[Genome, ...]
    divisor: int

    @classmethod
    def of(
        cls,
        coupling: Coupling,
        scores: Scores | None = None,
        *,
        least: float = 0.2,
        step: float = 0.1,
        divisor: int | Literal["auto"] = "auto",
    ) -> Self:
        """Widths ``rho * width`` for rho from ``least`` to 1 in steps of ``step``, rounded to multiples of ``divisor``.

        Args:
            coupling: The groups.
            scores: What each channel is worth: a width keeps the best ones. None: the first ones.
            least: Smallest share, in (0, 1].
            step: Distance of shares.
            divisor: Kept channels are multiples of this, with less for narrow groups as in `curlfx.plan`; ``"auto"``: 8
                where a group is 128 wide or wider, else 1.

        Raises: ConfigError for numbers out of range; PlanError for scores of another network.
        Source: widths of slimmable networks (arXiv:1903.05134).
        """
        if not 0 < least <= 1 or not 0 < step <= 1:
            raise ConfigError(f"least = {least}, step = {step}: want shares in (0, 1]")
        if divisor != "auto" and divisor < 1:
            raise ConfigError(f"divisor = {divisor}: want 'auto' or a whole number from 1")
        units = make_units(coupling, scores or first_channels(coupling))
        if divisor == "auto":
            divisor = 8 if max((group.width for group in coupling.groups), default=0) >= WIDE else 1
        steps = units.steps(divisor)
        rhos = _shares(Fraction(str(least)), Fraction(str(step)))
        sizes = zip(units.sizes.tolist(), steps.tolist(), strict=True)
        return cls(coupling, units, tuple(_grid(size, each, rhos) for size, each in sizes), divisor)

    @property
    def full(self) -> Genome:
        """The whole network."""
        return tuple(grid[-1] for grid in self.grids)

    @property
    def tiny(self) -> Genome:
        """The narrowest network."""
        return tuple(grid[0] for grid in self.grids)

    @cached_property
    def size(self) -> int:
        """Number of networks."""
        return math.prod(len(grid) for grid in self.grids)

    @property
    def order(self) -> bytes:
        """Which channels go first, as bytes that are others where any width keeps other channels."""
        return self.units.channels.tobytes() + self.units.channel_rank.tobytes()

    def random(self, generator: np.random.Generator) -> Genome:
        """A network, every width of every group as likely as the others."""
        return tuple(grid[generator.integers(len(grid))] for grid in self.grids)

    def alive(self, genome: Sequence[int]) -> Alive:
        """Channels that stay, ``(N + 1,)``; entry 0 is True."""
        return self.units.alive(self._removed(genome))

    def keep(self, genome: Sequence[int]) -> dict[GroupId, tuple[int, ...]]:
        """Kept positions of every group that loses channels."""
        return kept_positions(self.coupling, self.units, self._removed(genome))

    def widths(self, genome: Sequence[int]) -> dict[GroupId, int]:
        """Kept channels of every group."""
        kept = (np.asarray(genome) * self.units.blocks).tolist()
        return dict(zip(self.units.ids, kept, strict=True))

    def _removed(self, genome: Sequence[int]) -> Ints:
        removed: Ints = self.units.sizes - np.asarray(genome, np.int64)
        return removed


def _shares(least: Fraction, step: Fraction) -> list[Fraction]:
    count = (1 - least) // step
    return [*(least + number * step for number in range(count + 1)), Fraction(1)]


def _grid(size: int, step: int, rhos: Sequence[Fraction]) -> Genome:
    rounded = {max(1, math.floor(rho * size / step + Fraction(1, 2))) * step for rho in rhos}
    return tuple(sorted({min(kept, size) for kept in rounded} | {size}))
