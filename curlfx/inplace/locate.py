"""From an exception to the module and line of the user's code that it came from."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from torch import nn

from curlfx.graph.source import raised_at
from curlfx.inplace.fault import Fault


def raised(model: nn.Module, error: BaseException) -> Fault:
    """Where a module of the model raised an exception, or the exception behind it that has a line of the user's."""
    found = next((one for one in _chain(error) if raised_at(one.__traceback__)), error)
    reason = next((line.strip() for line in str(found).splitlines() if line.strip()), type(found).__name__)
    return Fault(reason, _module(model, found), raised_at(found.__traceback__))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exceptions behind one, the first cause first."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return reversed(causes)


def _module(model: nn.Module, error: BaseException) -> str:
    """Name of the innermost module whose code was running."""
    names = {id(module): name for name, module in model.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = (frame.f_locals.get("self") for frame in reversed(frames))
    return next((names[id(owner)] for owner in owners if isinstance(owner, nn.Module) and id(owner) in names), "")
