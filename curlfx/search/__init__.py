"""Stage-wise pruning: a supernet, trained by in-place distillation, and a search for the best widths under a target."""

from curlfx.search.evolve import EvolutionSettings, evolve
from curlfx.search.proxy import ProxyData
from curlfx.search.sandwich import SandwichSettings, train_supernet
from curlfx.search.search import Candidate, SearchResult, plan_genome, search
from curlfx.search.space import Genome, Space
from curlfx.search.supernet import Stage, Supernet

__all__ = [
    "Candidate",
    "EvolutionSettings",
    "Genome",
    "ProxyData",
    "SandwichSettings",
    "SearchResult",
    "Space",
    "Stage",
    "Supernet",
    "evolve",
    "plan_genome",
    "search",
    "train_supernet",
]
