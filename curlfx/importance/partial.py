"""Unfinished scores on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from curlfx.coupling import Coupling
from curlfx.files import write_bytes
from curlfx.graph import TracedModel, show

Arrays = dict[str, npt.NDArray[Any]]
SECONDS = 20.0
"""Least time between two writes."""
_KEY = "key"


class Partial:
    """Arrays in a safetensors file that belongs to one question; none without a path.

    Args:
        path: The file; its folder exists.
        key: Of the question, see `key_of`; what was written for another one counts as nothing.
        seconds: Least time between two writes.
    """

    def __init__(self, path: Path | None, key: str, seconds: float | None = None) -> None:
        self._path, self._key = path, key
        self._seconds = SECONDS if seconds is None else seconds
        self._written = time.monotonic()

    def read(self) -> Arrays:
        """What was written last; empty when there is nothing, nothing readable, or that of another question."""
        if self._path is None or not self._path.is_file():
            return {}
        try:
            with safetensors.safe_open(self._path, framework="numpy") as file:
                if (file.metadata() or {}).get(_KEY) != self._key:
                    return {}
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, safetensors.SafetensorError):  # it is only a shortcut: without it, work starts again
            return {}

    def write(self, arrays: Arrays, *, now: bool = False) -> None:
        """Replace what is there, whole or not at all, unless that was done a moment ago. Raises: OutputError."""
        if self._path is None or (not now and time.monotonic() - self._written < self._seconds):
            return
        write_bytes(self._path, safetensors.numpy.save(arrays, metadata={_KEY: self._key}))
        self._written = time.monotonic()


def key_of(traced: TracedModel, coupling: Coupling, batches: Sequence[Tensor], *words: object) -> str:
    """A hash of all that scores depend on: the graph, its tensors, the groups, the images, and some words."""
    found = hashlib.sha256()
    for word in (show(traced), torch.__version__, torch.get_num_threads(), *words):
        found.update(f"{word}\n".encode())
    for name, tensor in [*traced.tensors().items(), *((str(place), batch) for place, batch in enumerate(batches))]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for group in coupling.groups:
        found.update(group.id.encode())
        found.update(np.ascontiguousarray(group.channels).data)
    return found.hexdigest()
