"""Targets: what a slim network must reach."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from curlfx.cost import Cost
from curlfx.errors import TargetError, did_you_mean

Amount = int | float | str
"""A share of the dense network (``"50%"``, ``0.5``) or an absolute number (``1_100_000_000``, ``"1.1G"``)."""

QUANTITIES: Mapping[str, Callable[[Cost], Fraction]] = {
    "macs": lambda cost: Fraction(cost.macs),
    "params": lambda cost: Fraction(cost.params),
    "padded_macs": lambda cost: Fraction(cost.padded_macs),
    "size_mb": lambda cost: Fraction(cost.size_bytes, 10**6),
    "latency_ms": lambda cost: Fraction(repr(float(cost.latency_ms or 0.0))),  # in decimals, as amounts are read
}
"""What can be a target, and its value in the unit of its name (MB is a million bytes)."""
MEASURED = ("size_mb", "latency_ms")
"""Those of which a number up to 1 is no share: half a megabyte is a size, half a parameter is a share."""

_NO_TABLE = (
    "it needs a latency table of this network on the runtime: measure one with curlfx.measure_latency and give "
    "costs=table.costs(traced, coupling)"
)

_NUMBER = re.compile(r"\s*(\d{1,30}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,2})?|\.\d{1,30})\s*([%kKMG]?)\s*")  # no 1e999999999
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Target:
    """An upper bound on one quantity.

    Attributes:
        quantity: Key of `QUANTITIES`.
        limit: Largest value that fulfils it, in the quantity's unit.
        dense: Value of the dense network.
    """

    quantity: str
    limit: Fraction
    dense: Fraction

    def value(self, cost: Cost) -> Fraction:
        """The quantity of ``cost``."""
        return QUANTITIES[self.quantity](cost)

    def met(self, cost: Cost) -> bool:
        """Whether ``cost`` is within the bound."""
        return self.value(cost) <= self.limit

    def percent(self, value: Fraction | int) -> float:
        """``value`` in percent of the dense network."""
        return float(100 * value / self.dense)


def parse_targets(target: Mapping[str, Amount], dense: Cost) -> tuple[Target, ...]:
    """Targets as absolute bounds; all of them must hold.

    A percent string is a share of the dense network, and of things that are counted so is a number in (0, 1] that is
    no ``int``; everything else is absolute.
    Raises: TargetError for an unknown quantity, something that is no number, or a bound that nothing or every network
        fulfils.
    """
    if not target:
        raise TargetError(f"target = {target!r}: want a quantity with a bound, like {{'macs': '50%'}}")
    return tuple(_parse(quantity, amount, dense) for quantity, amount in target.items())


def _parse(quantity: str, amount: Amount, dense: Cost) -> Target:
    if quantity not in QUANTITIES:
        hint = did_you_mean(quantity, QUANTITIES) or f": want one of {', '.join(QUANTITIES)}"
        raise TargetError(f"target '{quantity}' is not known{hint}")
    if quantity == "latency_ms" and dense.latency_ms is None:
        raise TargetError(f"target latency_ms = {amount}: {_NO_TABLE}")
    whole = QUANTITIES[quantity](dense)
    number, is_share = _number(quantity, amount)
    if is_share:
        if not 0 < number <= 1:
            raise TargetError(f"target {quantity} = {amount}: out of range: want a share above 0% and at most 100%")
        return Target(quantity, number * whole, whole)
    if number <= 0:
        raise TargetError(f"target {quantity} = {amount}: out of range: want more than 0, or a share like '50%'")
    if number > whole:
        raise TargetError(
            f"target {quantity} = {amount}: out of range: want more than 0 and at most the dense network's "
            f"{float(whole):,.12g}"
        )
    return Target(quantity, number, whole)


def _number(quantity: str, amount: Amount) -> tuple[Fraction, bool]:
    """The amount as a number, and whether it is a share."""
    counted = quantity not in MEASURED
    wanted = "want a share like '50%' or 0.5, or an absolute number like 1100000000 or '1.1G'"
    if isinstance(amount, int) and not isinstance(amount, bool):
        return Fraction(amount), False
    if isinstance(amount, float) and math.isfinite(amount):
        return Fraction(repr(amount)), counted and amount <= 1
    found = _NUMBER.fullmatch(amount) if isinstance(amount, str) else None
    if found is None:
        raise TargetError(f"target {quantity} = {amount!r}: {wanted}")
    number = Fraction(found[1])
    if found[2] == "%":
        return number / 100, True
    return number * _FACTORS[found[2]], counted and found[2] == "" and number <= 1 and "." in found[1]
