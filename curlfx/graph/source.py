"""Where in the user's code a node came from."""

import contextlib
import os
import re
import traceback
from pathlib import Path
from types import TracebackType

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"
_STANDARD = contextlib.__file__


def where(node: Node) -> str:
    """The user's innermost line that made this node, like ``"models/gfnet.py:87"``; empty when unknown.

    Lines of torch itself are passed over. `torch.export` keeps the frames of ``forward`` methods only, so a function
    that a ``forward`` calls is reported at the line of the call.
    """
    trace = node.meta.get("stack_trace") or ""
    return _innermost([(found["file"], int(found["line"])) for found in _FRAME.finditer(trace)])


def raised_at(trace: TracebackType | None) -> str:
    """The user's innermost line in the traceback of an exception, in the form of `where`; empty when there is none."""
    return _innermost([(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(trace)])


def shortened(file: str) -> str:
    """The last two parts of a path: enough to find the file, and the same on every machine."""
    return "/".join(Path(file).parts[-2:])


def _innermost(frames: list[tuple[str, int]]) -> str:
    for file, line in reversed(frames):
        if not file.startswith((_TORCH, _HERE, "<")) and file != _STANDARD:
            return f"{shortened(file)}:{line}"
    return ""
