"""What a criterion is asked."""

from __future__ import annotations

from dataclasses import dataclass

from curlfx.coupling import Coupling
from curlfx.graph import TracedModel
from curlfx.importance.data import ProxySet
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
    """

    traced: TracedModel
    coupling: Coupling
    proxy: ProxySet
    seed: int
    progress: Progress | None
