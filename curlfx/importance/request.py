"""What a criterion is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from curlfx.coupling import Coupling
from curlfx.graph import TracedModel
from curlfx.importance.data import ProxySet
from curlfx.importance.divergence import AUTO
from curlfx.progress import Progress


@dataclass(frozen=True)
class Request:
    """One question: how much does every coupled channel matter?

    Attributes:
        traced: The dense network; a criterion leaves it exactly as it was.
        coupling: Its channels.
        proxy: Images to look at.
        seed: Of random choices.
        progress: Who wants to see the steps.
        divergence: How predictions are compared, see `curlfx.importance.divergence`.
        store: File for unfinished scores, so that a killed process can be followed by another; None: nowhere.
        details: What a criterion wants to be known of its numbers, see `Scores.details`; it may add to them.
    """

    traced: TracedModel
    coupling: Coupling
    proxy: ProxySet
    seed: int
    progress: Progress | None
    divergence: str = AUTO
    store: Path | None = None
    details: dict[str, int] = field(default_factory=dict)
