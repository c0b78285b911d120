"""Which genomes are worth looking at: those within the target, and not far below it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from curlfx.cost import Cost, CostModel
from curlfx.errors import BudgetError, ConfigError
from curlfx.planning.budget import Search
from curlfx.planning.target import QUANTITIES, Amount, parse_targets
from curlfx.planning.units import rank_uniformly
from curlfx.search.space import Genome, Space


class Budget:
    """Upper bounds, and a lower one so that nothing is left unused.

    Args:
        space: The genomes.
        costs: What a network costs; with a latency model where that is a target.
        target: Upper bounds, as `curlfx.plan` takes them; all must hold.
        lower: A network should use this share of one of the bounds at least, in [0, 1).

    Raises: TargetError for a target that means nothing; BudgetError for one that the narrowest network misses.
    Source: evolutionary search under a budget as in MetaPruning (arXiv:1903.10258); the lower bound is ours.
    """

    def __init__(self, space: Space, costs: CostModel, target: Mapping[str, Amount], *, lower: float = 0.95) -> None:
        if not 0 <= lower < 1:
            raise ConfigError(f"lower = {lower}: want a share in [0, 1)")
        self.space, self.costs, self.targets = space, costs, parse_targets(target, costs.dense)
        self.lower = Fraction(str(lower))
        self._known: dict[Genome, Cost] = {}
        least = self.cost(space.tiny)
        for one in self.targets:
            if not one.met(least):
                raise BudgetError(
                    f"{one.quantity} {one.percent(one.limit):.4g} % of dense cannot be reached: the narrowest network "
                    f"of the search space has {one.percent(one.value(least)):.3g} %; lower its least width"
                )

    def cost(self, genome: Genome) -> Cost:
        """What a network costs."""
        if genome not in self._known:
            self._known[genome] = self.costs.evaluate(self.space.alive(genome))
        return self._known[genome]

    def met(self, genome: Genome) -> bool:
        """Whether all upper bounds hold."""
        cost = self.cost(genome)
        return all(target.met(cost) for target in self.targets)

    def used(self, genome: Genome) -> Fraction:
        """Share of the bound that is nearest."""
        cost = self.cost(genome)
        return max(QUANTITIES[target.quantity](cost) / target.limit for target in self.targets)

    def holds(self, genome: Genome) -> bool:
        """Whether a network is within the bounds, the lower one included."""
        return self.lower <= self.used(genome) and self.met(genome)

    def random(self, generator: np.random.Generator) -> Genome | None:
        """A random network, narrowed or widened in random groups, step by step, until it holds; None: it does not."""
        genome = self._narrowed(self.space.random(generator), generator)
        while self.used(genome) < self.lower:
            wider = [self._moved(genome, gene, 1) for gene in generator.permutation(len(genome))]
            found = next((one for one in wider if one is not None and self.met(one)), None)
            if found is None:
                return None
            genome = found
        return genome

    def uniform(self) -> Genome:
        """The widest network that gives the same share of every group, as ``curlfx.plan(allocation="uniform")``."""
        units = self.space.units
        found = Search(units, self.costs, self.targets, rank_uniformly, Fraction(0), self.space.divisor)
        return tuple((units.sizes - found.removed(self.space.coupling)).tolist())

    def _narrowed(self, genome: Genome, generator: np.random.Generator) -> Genome:
        while not self.met(genome):
            narrower = (self._moved(genome, gene, -1) for gene in generator.permutation(len(genome)))
            genome = next(one for one in narrower if one is not None)  # the narrowest network of all is within bounds
        return genome

    def _moved(self, genome: Genome, gene: int, by: int) -> Genome | None:
        grid = self.space.grids[gene]
        place = grid.index(genome[gene]) + by
        return (*genome[:gene], grid[place], *genome[gene + 1 :]) if 0 <= place < len(grid) else None
