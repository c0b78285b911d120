"""Where parts of genomes are measured: in this process, or by workers (`curlfx.search.workers`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from curlfx.errors import CheckError
from curlfx.search.ledger import Ledger
from curlfx.search.proxy import Part, Proxy
from curlfx.search.space import Genome


class Engine(Protocol):
    """Measures parts, in any order."""

    def measure(self, parts: Iterable[Part]) -> Iterator[tuple[Part, float]]:
        """Each part with its number, as soon as it is known."""


class InProcess:
    """Measures one part after the other.

    Args:
        proxy: What measures.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def measure(self, parts: Iterable[Part]) -> Iterator[tuple[Part, float]]:
        """Each part with its number."""
        return ((part, self._proxy.measure(part)) for part in parts)


class Evaluator:
    """Values of genomes, every part of which is measured once.

    Args:
        proxy: Which parts a genome has.
        engine: Who measures them.
        ledger: What is known.
    """

    def __init__(self, proxy: Proxy, engine: Engine, ledger: Ledger) -> None:
        self._proxy, self._engine, self._ledger = proxy, engine, ledger

    def __call__(self, genomes: Sequence[Genome]) -> list[float]:
        """The values of some genomes; lower is better. Raises: CheckError for one that is not finite."""
        parts = {genome: self._proxy.parts(genome) for genome in genomes}
        wanted = dict.fromkeys(part for each in parts.values() for part in each if part not in self._ledger)
        for part, value in self._engine.measure(wanted):
            if not math.isfinite(value):
                raise CheckError(
                    f"search: the proxy of {part} (a stage and its widths, or all widths) is {value}; want finite "
                    "weights, and calibration batches of 2 or more images"
                )
            self._ledger.add(part, value)
        return [sum(self._ledger[part] for part in parts[genome]) for genome in genomes]
