"""Down to the target, or why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from curlfx.cost import CostModel
from curlfx.coupling import Coupling
from curlfx.errors import BudgetError
from curlfx.planning.target import Target
from curlfx.planning.units import Ints, Units

Ranking = Callable[[Units, Ints], Ints]


@dataclass(frozen=True, eq=False)
class Search:
    """Everything that decides how many units of each group go.

    Attributes:
        units: What can go.
        costs: What a keep set costs.
        targets: What must be reached.
        ranking: In which order units go.
        floor: Share of a group below which nothing goes any more.
        round_to: Kept widths are multiples of this.
    """

    units: Units
    costs: CostModel
    targets: Sequence[Target]
    ranking: Ranking
    floor: Fraction
    round_to: int

    def removed(self, coupling: Coupling) -> Ints:
        """Units to remove of each group, ``(G,)``: the fewest, in ranking order, that meet every target.

        The cost never grows along the order, rounding included, so bisection finds the number of units: the result
        meets the targets, and one unit less would not.
        Raises: BudgetError.
        """
        steps = self.units.steps(self.round_to)
        caps = self.units.caps(self.floor, steps)
        order = self.ranking(self.units, caps)

        def after(count: int) -> Ints:
            gone = np.bincount(order[:count], minlength=self.units.sizes.size).astype(np.int64)
            return self.units.rounded(gone, steps)

        low, high = 0, order.size
        if not self.met(after(high)):
            raise self._unreachable(coupling, after(high))
        while low < high:
            middle = (low + high) // 2
            if self.met(after(middle)):
                high = middle
            else:
                low = middle + 1
        return after(high)

    def met(self, removed: Ints) -> bool:
        """Whether every target holds after that many units of each group went."""
        cost = self.costs.evaluate(self.units.alive(removed))
        return all(target.met(cost) for target in self.targets)

    def _unreachable(self, coupling: Coupling, removed: Ints) -> BudgetError:
        alive = self.units.alive(removed)
        least = self.costs.evaluate(alive)
        target = next(target for target in self.targets if not target.met(least))
        name = f"{target.quantity} {target.percent(target.limit):.4g} % of dense cannot be reached"
        if not coupling.groups:
            return nothing_can_go(name, coupling)
        if target.quantity == "latency_ms":
            return BudgetError(
                f"{name}: the least is {target.percent(target.value(least)):.3g} %; {self._advice(target)}"
            )
        dead = np.zeros_like(alive)
        dead[0] = True
        prices = self.costs.tensor_params if target.quantity in ("params", "size_mb") else self.costs.layer_macs
        frozen, left = prices(dead), prices(alive)
        dense = sum(prices(self.costs.everything()).values())
        rest = {layer: left[layer] - frozen[layer] for layer in left}
        lines = [f"{name}: the least is {target.percent(target.value(least)):.3g} %"]
        if any(frozen.values()):
            lines.append(f"the frozen layers alone are {_shares(frozen, dense)}")
        options = f"floor {float(self.floor):g} and round_to {self.round_to}"
        lines.append(f"what {options} keep of the others is {_shares(rest, dense)}")
        return BudgetError("; ".join(lines) + f"; {self._advice(target)}")

    def _advice(self, target: Target) -> str:
        """What would help: the first of less rounding and a lower floor that reaches the target."""
        for floor, round_to in ((self.floor, 1), (Fraction(0), self.round_to), (Fraction(0), 1)):
            removed = self.units.rounded(self.units.caps(floor), self.units.steps(round_to))
            cost = self.costs.evaluate(self.units.alive(removed))
            if target.met(cost):
                changes = [f"floor={float(floor):g}"] * (floor != self.floor)
                changes += [f"round_to={round_to}"] * (round_to != self.round_to)
                return f"{' and '.join(changes)} would reach {target.percent(target.value(cost)):.3g} %"
        return "raise the target, or freeze fewer layers"


def nothing_can_go(name: str, coupling: Coupling) -> BudgetError:
    """The error for a target of a network without free channels: why it has none."""
    reasons = "; ".join(dict.fromkeys(frozen.reason for frozen in coupling.frozen[:3])) or "it has no layers"
    return BudgetError(f"{name}: no channel of this network can go: {reasons}")


def _shares(layers: dict[str, int], dense: int) -> str:
    """Sum and the three largest, in percent of the dense network: ``27 % (conv1.weight 12 %, fc.weight 15 %)``."""
    largest = sorted(layers.items(), key=lambda item: -item[1])
    shown = [f"{layer} {100 * size / dense:.3g} %" for layer, size in largest[:3] if size]
    more = ", …" if sum(size > 0 for size in layers.values()) > len(shown) else ""
    return f"{100 * sum(layers.values()) / dense:.3g} % ({', '.join(shown)}{more})"
