"""The schedule: after which epochs channels go, how many, and where it stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real

from curlfx.errors import ConfigError
from curlfx.planning.target import Amount


@dataclass(frozen=True)
class Schedule:
    """After every ``interval`` epochs, up to epoch ``last``, the channels with the lowest scores go.

    Attributes:
        interval: Epochs from one step to the next; the first step comes after epoch ``interval``.
        last: Last epoch after which channels may go; what comes after it lets the network converge.
        amount: Coupled channels per step: a number, or a share of all that can go (``0.05``, ``"5%"``). None: every
            step goes an equal part of the way to ``target``, which the last one reaches.
        target: Upper bounds as `curlfx.plan` takes them; no channel goes once all of them hold. May be empty beside an
            ``amount``.
        floor: In [0, 1): share of every group, rounded up, that always stays; one channel always does.
        round_to: Kept widths are multiples of this where the group is wide enough; 1 leaves them as they come.

    Raises: ConfigError.
    Source: feature relevance scores (arXiv:2002.09958): interval n, x channels per step, last pruning epoch N1; the
        code has no floor.
    """

    interval: int
    last: int
    amount: Amount | None = None
    target: Mapping[str, Amount] | None = field(default_factory=dict)
    floor: float = 0.1
    round_to: int = 1

    def __post_init__(self) -> None:
        if not _whole(self.interval) or self.interval < 1:
            raise ConfigError(f"interval = {self.interval!r}: want a whole number of epochs, at least 1")
        if not _whole(self.last) or self.last < self.interval:
            raise ConfigError(f"last = {self.last!r}: want at least interval = {self.interval}; nothing would ever go")
        if not _whole(self.round_to) or self.round_to < 1:
            raise ConfigError(f"round_to = {self.round_to!r}: want a whole number, at least 1")
        if not _number(self.floor) or not 0 <= self.floor < 1:
            raise ConfigError(f"floor = {self.floor!r}: want a share in [0, 1)")
        if not _bounds(self.target):
            raise ConfigError(f"target = {self.target!r}: want upper bounds by name, like {{'macs': '50%'}}")
        object.__setattr__(self, "target", dict(self.target or {}))
        if self.amount is None and not self.target:
            raise ConfigError("a schedule wants an amount per step, a target like {'macs': '50%'}, or both")
        if self.amount is not None:
            self.channels(1)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs after which channels may go: interval, 2 · interval, …, at most ``last``."""
        return tuple(range(self.interval, self.last + 1, self.interval))

    def number(self, epoch: int) -> int | None:
        """Number of the step after ``epoch``, from 1; None where none is due."""
        step, rest = divmod(epoch, self.interval)
        return step if not rest and 0 < epoch <= self.last else None

    def channels(self, total: int) -> int | None:
        """Coupled channels per step of a network with ``total`` that can go; None without an amount.

        Raises: ConfigError for an amount that is neither a number of channels nor a share.
        """
        amount, wanted = self.amount, "want a whole number of channels, or a share like 0.05 or '5%'"
        if amount is None:
            return None
        if _whole(amount) and int(amount) > 0:
            return int(amount)
        try:
            text = str(amount).strip()
            share = Fraction(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if isinstance(amount, bool) or not 0 < share < 1:
            raise ConfigError(f"amount = {amount!r}: {wanted}")
        return max(1, round(share * total))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _bounds(value: object) -> bool:
    return isinstance(value, Mapping | None)
