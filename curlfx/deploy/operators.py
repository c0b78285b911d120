"""The exporter's operators, read once: it parses the source of all its functions again at every call."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_REGISTRATION = "torch.onnx._internal.exporter._registration"
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def operators_read_once() -> Iterator[None]:
    """Let `torch.onnx.export` take the operators that an earlier call in this process read.

    This is half of the time of a small network's export. A release of torch that is laid out differently reads
    them again, as without this. Operators that are registered with onnxscript after the first call are not seen.
    """
    module, apis = _home()
    if apis is None:
        yield
        return
    with _ONE_AT_A_TIME:
        module.onnxscript_apis = _Remembering(apis)
        try:
            yield
        finally:
            module.onnxscript_apis = apis


class _Remembering:
    """A module whose list of operators is kept."""

    def __init__(self, apis: Any) -> None:
        self._apis = apis

    def __getattr__(self, name: str) -> Any:
        return getattr(self._apis, name)

    def get_torchlib_ops(self) -> list[Any]:
        """The list, a new one of the same entries each time."""
        return list(_operators(self._apis.get_torchlib_ops))


def _home() -> tuple[Any, Any]:
    """The exporter's module that holds the list's owner, and that owner; None where there is none."""
    try:
        module = importlib.import_module(_REGISTRATION)
    except ImportError:
        return None, None
    apis = getattr(module, "onnxscript_apis", None)
    apis = apis._apis if isinstance(apis, _Remembering) else apis
    return module, apis if hasattr(apis, "get_torchlib_ops") else None


@functools.cache
def _operators(read: Callable[[], list[Any]]) -> tuple[Any, ...]:
    return tuple(read())
