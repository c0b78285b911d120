"""From an exception to the module and line of the user's code that it came from."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from curlfx import graph
from curlfx.errors import CurlfxError
from curlfx.graph.source import shortened
from curlfx.inplace.fault import Fault

_PASSED_OVER = (
    "<",
    contextlib.__file__,
    *(f"{Path(str(file)).parent}{os.sep}" for file in (torch.__file__, graph.__file__, __file__)),
)


def raised(model: nn.Module, error: BaseException) -> Fault:
    """Where a module of the model raised an exception: the first of its causes that has a line of the user's."""
    found = [one for one in _chain(error) if not isinstance(one, CurlfxError)] or [error]
    lines = [_line(one.__traceback__) for one in found]
    position = next((position for position, line in enumerate(lines) if line), 0)
    first = found[position]
    reason = next((line.strip() for line in str(first).splitlines() if line.strip()), type(first).__name__)
    return Fault(reason, _module(model, first), lines[position])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it, the first cause first."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return reversed(causes)


def line_of(file: str, number: int) -> str:
    """A line of the user's code, like ``"models/gfnet.py:87"``; empty for one of torch or of ours."""
    return "" if file.startswith(_PASSED_OVER) else f"{shortened(file)}:{number}"


def _line(trace: TracebackType | None) -> str:
    """The user's innermost line in a traceback."""
    frames = traceback.extract_tb(trace)
    return next((line for one in reversed(frames) if (line := line_of(one.filename, one.lineno or 0))), "")


def _module(model: nn.Module, error: BaseException) -> str:
    """Name of the innermost module whose code was running."""
    names = {id(module): name for name, module in model.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = (frame.f_locals.get("self") for frame in reversed(frames))
    return next((names[id(owner)] for owner in owners if isinstance(owner, nn.Module) and id(owner) in names), "")
