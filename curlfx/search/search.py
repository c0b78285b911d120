"""From a trained supernet and a target to the best network, as a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from curlfx.cost import Cost, CostModel
from curlfx.coupling import Coupling
from curlfx.errors import InvariantError
from curlfx.graph import TracedModel
from curlfx.importance.scores import Scores
from curlfx.planning import SlimPlan, plan_from_widths
from curlfx.planning.target import QUANTITIES, Amount
from curlfx.progress import Progress, StepEvent, StepTimer
from curlfx.search.budget import Budget
from curlfx.search.engine import Engine, Evaluator, InProcess
from curlfx.search.evolve import EvolutionSettings, evolve, front, random_genomes
from curlfx.search.ledger import Ledger
from curlfx.search.proxy import ProxyData, ProxyName, make_proxy, question
from curlfx.search.space import Genome, Space
from curlfx.search.supernet import Supernet

HALF: Mapping[str, Amount] = {"macs": "50%"}


@dataclass(frozen=True)
class Candidate:
    """A network that was looked at.

    Attributes:
        genome: Kept units of every group.
        value: Its proxy; lower is better.
        cost: What it costs.
    """

    genome: Genome
    value: float
    cost: Cost

    def as_dict(self, space: Space) -> dict[str, Any]:
        """The same for JSON, with widths by group."""
        return {"widths": space.widths(self.genome), "value": self.value, "cost": self.cost.as_dict()}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: The network of the lowest value within the budget.
        front: Networks that none is both cheaper (by the first target) and better than, by rising cost.
        looked_at: How many networks were compared.
        measured: How many parts were measured now; ``known`` came from an earlier, interrupted search.
        known: How many parts had been measured before.
        history: Best value after every generation.
        controls: ``uniform``: the same share of every group; ``random``: the best of as many random networks. Empty
            without.
    """

    best: Candidate
    front: tuple[Candidate, ...]
    looked_at: int
    measured: int
    known: int
    history: tuple[float, ...]
    controls: Mapping[str, Candidate] = field(default_factory=dict)

    def as_dict(self, space: Space) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "best": self.best.as_dict(space),
            "front": [one.as_dict(space) for one in self.front],
            "looked_at": self.looked_at,
            "measured": self.measured,
            "known": self.known,
            "history": list(self.history),
            "controls": {name: one.as_dict(space) for name, one in self.controls.items()},
        }


def search(
    supernet: Supernet,
    data: ProxyData,
    target: Mapping[str, Amount] = HALF,
    settings: EvolutionSettings | None = None,
    *,
    proxy: ProxyName = "stages",
    lower: float = 0.95,
    controls: bool = False,
    costs: CostModel | None = None,
    engine: Engine | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """The best network of a supernet's space under a target, by evolution.

    Args:
        supernet: Trained.
        data: Training images to measure batch normalisations on, and held-out images to judge by.
        target: Upper bounds as `curlfx.plan` takes them.
        settings: Of the evolution; None takes the defaults.
        proxy: ``"stages"``: sum of the stage losses against the whole network; ``"accuracy"``: error rate of the
            assembled slim network.
        lower: A network should use this share of one of the bounds at least.
        controls: Also judge uniform widths, and the best of as many random networks.
        costs: The network's cost model; with latency, as ``table.costs(traced, coupling)`` makes it, for that target.
        engine: Who measures; None: this process.
        state: File that what is measured is kept in; a search that was interrupted goes on from it, to the same result.
        progress: Sees every generation.

    Raises: TargetError, BudgetError as `curlfx.search.budget.Budget` and `evolve`; DataError, ConfigError, OutputError.
    """
    settings, space = settings or EvolutionSettings(), supernet.space
    costs = costs or CostModel(supernet.network, space.coupling)
    budget = Budget(space, costs, target, lower=lower)
    uniform = budget.uniform() if controls else None
    judge = make_proxy(proxy, supernet, data)
    ledger = Ledger(question(proxy, supernet, data), state)
    evaluate = Evaluator(judge, engine or InProcess(judge), ledger)
    history: list[float] = []
    timer = StepTimer(settings.generations)

    def watch(generation: int, _: Genome, value: float) -> None:
        history.append(value)
        if progress is not None:
            left = timer.seconds_left(generation)
            progress.on_step(StepEvent("search", 0, generation, settings.generations, value, seconds_left=left))

    known = evolve(space, budget, evaluate, settings, watch=watch)
    found = [Candidate(genome, value, budget.cost(genome)) for genome, value in known.items()]
    others = {} if uniform is None else _controls(uniform, budget, evaluate, len(known), settings.seed)
    quantity = QUANTITIES[budget.targets[0].quantity]
    chosen = front([float(quantity(one.cost)) for one in found], [one.value for one in found])
    return SearchResult(
        best=_best(found),
        front=tuple(found[position] for position in chosen),
        looked_at=len(found),
        measured=len(ledger) - ledger.found,
        known=ledger.found,
        history=tuple(history),
        controls=others,
    )


def plan_genome(
    traced: TracedModel,
    coupling: Coupling,
    space: Space,
    scores: Scores | None,
    candidate: Candidate,
    target: Mapping[str, Amount] = HALF,
    costs: CostModel | None = None,
    **facts: JsonValue,
) -> SlimPlan:
    """The plan of a network that was found; ``facts`` go into its provenance.

    Args:
        traced: The dense network.
        coupling: Its channels.
        space: The genomes.
        scores: Those that the space was made with.
        candidate: The network.
        target: What was asked for.
        costs: The network's cost model, if the caller has one.
        facts: What else led to it.
    """
    plan = plan_from_widths(traced, coupling, scores, dict(space.widths(candidate.genome)), costs=costs)
    if plan.keep != space.keep(candidate.genome):
        raise InvariantError("the plan keeps other channels than the genome; a bug of curlfx.search, please report it")
    update = {"target": dict(target), "allocation": "search", "round_to": space.divisor}
    return plan.model_copy(update=update).noting(proxy=candidate.value, **facts)


def _best(found: Sequence[Candidate]) -> Candidate:
    return min(found, key=lambda one: (one.value, one.genome))


def _controls(uniform: Genome, budget: Budget, evaluate: Evaluator, count: int, seed: int) -> dict[str, Candidate]:
    own = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])  # other networks than the first generation's
    found: dict[str, Candidate] = {}
    for name, genomes in (("uniform", [uniform]), ("random", random_genomes(budget, count, own))):
        pairs = zip(genomes, evaluate(genomes), strict=True)
        found[name] = _best([Candidate(genome, value, budget.cost(genome)) for genome, value in pairs])
    return found
