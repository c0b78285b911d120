"""Search by evolution, and what it is compared with: random search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from curlfx.errors import BudgetError, ConfigError
from curlfx.search.budget import Budget
from curlfx.search.space import Genome, Space

Evaluate = Callable[[Sequence[Genome]], Sequence[float]]
"""Values of some genomes; lower is better."""
HALF = 0.5
"""Chance of a gene to come from the one parent or the other."""
TRIES = 20
"""Draws per network that is wanted, before fewer have to do."""


@dataclass(frozen=True)
class EvolutionSettings:
    """Sizes of a population.

    Attributes:
        population: Networks of a generation.
        parents: The best of all so far, which the next generation comes from.
        mutants: Networks of a generation that are parents with some genes drawn anew.
        crossovers: Networks of a generation that take every gene from one of two parents.
        mutation: Chance of a gene to be drawn anew, in (0, 1].
        generations: How many, the random first one included.
        seed: Of every choice.

    Raises: ConfigError for numbers that do not go together.
    Source: MetaPruning (arXiv:1903.10258) and single-path one-shot search (arXiv:1904.00420).
    """

    population: int = 50
    parents: int = 10
    mutants: int = 25
    crossovers: int = 25
    mutation: float = 0.1
    generations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"population": 1, "parents": 1, "generations": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if value < least.get(field.name, 0):
                raise ConfigError(f"{field.name} = {value}: want at least {least.get(field.name, 0)}")
        if not 0 < self.mutation <= 1:
            raise ConfigError(f"mutation = {self.mutation}: want a share in (0, 1]")
        if self.mutants + self.crossovers > self.population:
            raise ConfigError(
                f"mutants = {self.mutants} and crossovers = {self.crossovers}: want at most population = "
                f"{self.population} together"
            )


def evolve(
    space: Space,
    budget: Budget,
    evaluate: Evaluate,
    settings: EvolutionSettings | None = None,
    *,
    watch: Callable[[int, Genome, float], None] = lambda *_: None,
) -> dict[Genome, float]:
    """Values of all networks that were looked at, none of them twice.

    The result follows from the seed and the values alone, in whatever order and wherever these were found.

    Args:
        space: The genomes.
        budget: Which of them may be looked at.
        evaluate: Gives values; lower is better.
        settings: None takes the defaults.
        watch: Is told the number of every finished generation, from 1, and the best network so far with its value.

    Raises: BudgetError when no network of the space is within the budget.
    """
    settings = settings or EvolutionSettings()
    generator = np.random.default_rng(settings.seed)
    known: dict[Genome, float] = {}
    for generation in range(1, settings.generations + 1):
        ranked = sorted(known, key=lambda genome: (known[genome], genome))[: settings.parents]
        born = _Generation(budget, set(known), generator)
        if ranked:
            born.add(settings.mutants, partial(_mutant, space, ranked, settings.mutation, generator))
            born.add(settings.crossovers, partial(_crossed, ranked, generator))
        born.add(settings.population - len(born.genomes), lambda: budget.random(generator))
        if not known and not born.genomes:
            raise _nothing(budget)
        known.update(zip(born.genomes, evaluate(born.genomes), strict=True))
        best = min(known, key=lambda genome: (known[genome], genome))
        watch(generation, best, known[best])
    return known


def random_genomes(budget: Budget, count: int, seed: int) -> list[Genome]:
    """So many random networks within the budget, none of them twice; fewer where there are not as many.

    Raises: BudgetError when there is none.
    """
    generator = np.random.default_rng(seed)
    born = _Generation(budget, set(), generator)
    born.add(count, lambda: budget.random(generator))
    if not born.genomes:
        raise _nothing(budget)
    return born.genomes


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions of what nothing else is better than in one and no worse than in the other, by rising cost."""
    order = sorted(range(len(costs)), key=lambda position: (costs[position], values[position], position))
    kept: list[int] = []
    for position in order:
        if not kept or values[position] < values[kept[-1]]:
            kept.append(position)
    return kept


class _Generation:
    """Networks of one generation, each new and within the budget."""

    def __init__(self, budget: Budget, known: set[Genome], generator: np.random.Generator) -> None:
        self.genomes: list[Genome] = []
        self._budget, self._known, self._generator = budget, known, generator

    def add(self, count: int, make: Callable[[], Genome | None]) -> None:
        """Up to ``count`` more."""
        wanted = len(self.genomes) + count
        for _ in range(TRIES * count):
            if len(self.genomes) >= wanted:
                return
            genome = make()
            if genome is not None and genome not in self._known and self._budget.holds(genome):
                self.genomes.append(genome)
                self._known.add(genome)


def _mutant(space: Space, parents: Sequence[Genome], chance: float, generator: np.random.Generator) -> Genome:
    parent = parents[int(generator.integers(len(parents)))]
    drawn = space.random(generator)
    changed = generator.random(len(parent)) < chance
    return tuple(new if change else old for old, new, change in zip(parent, drawn, changed, strict=True))


def _crossed(parents: Sequence[Genome], generator: np.random.Generator) -> Genome:
    one, other = (parents[int(generator.integers(len(parents)))] for _ in range(2))
    chosen = generator.random(len(one)) < HALF
    return tuple(a if first else b for a, b, first in zip(one, other, chosen, strict=True))


def _nothing(budget: Budget) -> BudgetError:
    bounds = ", ".join(f"{target.quantity} {target.percent(target.limit):.4g} %" for target in budget.targets)
    return BudgetError(
        f"no network of the search space was found between {float(budget.lower):g} of the target ({bounds} of dense) "
        "and the target; want more widths (a smaller step), or a smaller lower bound"
    )
