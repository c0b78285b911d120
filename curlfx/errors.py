"""The one tree of errors: what a caller did wrong, what a check found, and what is a bug of ours.

A message says where, what was found, and what is wanted or what to do instead. The cause, if any, is chained with
``raise … from cause``. The command line prints the message and leaves with ``exit_code``; it shows no traceback for
anything in this tree except `InvariantError`.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class CurlfxError(Exception):
    """Root of every error that curlfx raises on purpose.

    Attributes:
        exit_code: Exit status of the command line: 1 a check failed, 2 wrong usage or bad input.
    """

    exit_code: ClassVar[int] = 1


class UsageError(CurlfxError):
    """The caller's mistake: an argument, a file or a network that cannot be used as given (exit 2)."""

    exit_code: ClassVar[int] = 2


class ModelError(UsageError):
    """A model specification that names no network, or whose factory failed."""


class TraceError(UsageError):
    """A network that `torch.export` refuses; the message names the line of the user's code."""


class WeightsError(UsageError):
    """A weights file that is missing, unsafe, damaged, or does not fit the network."""


class DataError(UsageError):
    """Images or labels that are missing, damaged, or do not fit the network."""


class ConfigError(UsageError):
    """A configuration file or a ``key=value`` override that is not understood."""


class KeepError(UsageError):
    """A keep set that no network can be cut to: unknown group, wrong indices, unequal blocks."""


class PlanError(UsageError):
    """A plan that was made for another network, or whose file is damaged."""


class SavedError(UsageError):
    """A saved network that is incomplete, damaged, unsafe to read, or of a version that cannot be read."""


class TargetError(UsageError):
    """A target that means nothing: unknown quantity, no number, or out of range."""


class OutputError(UsageError):
    """A result that cannot be written: no permission, no space, or a file in the way."""


class CheckError(CurlfxError):
    """A check of a result failed (exit 1)."""


class BudgetError(CheckError):
    """A target that this network cannot reach, with what stands in the way."""


class VerificationError(CheckError):
    """Two forms of the same network that must agree do not."""


class InvariantError(CurlfxError):
    """A bug of curlfx itself, never of its caller (exit 1); please report it with the graph in the message."""


__all__ = [
    "BudgetError",
    "CheckError",
    "ConfigError",
    "CurlfxError",
    "DataError",
    "InvariantError",
    "KeepError",
    "ModelError",
    "OutputError",
    "PlanError",
    "SavedError",
    "TargetError",
    "TraceError",
    "UsageError",
    "VerificationError",
    "WeightsError",
]


def first_line(error: BaseException) -> str:
    """First line of an exception's text that is not blank; the name of its class where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def near_names(name: object, known: Iterable[str], most: int = 1) -> list[str]:
    """Up to ``most`` known names that a misspelt one may stand for, the nearest first."""
    return difflib.get_close_matches(str(name), list(known), n=most, cutoff=0.6)


def did_you_mean(name: object, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about a misspelt name: ``"; did you mean 'a' or 'b'?"``, or ``""`` when none is near."""
    near = near_names(name, known, most)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
