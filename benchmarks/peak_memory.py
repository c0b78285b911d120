"""Peak memory of a part of a program."""

import ctypes
import gc
import re
from pathlib import Path
from typing import Self

import torch

__all__ = ["PeakMemory"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Memory that the code inside took at most, above what was taken before.

    On a GPU that of its tensors, else resident memory of the process as Linux counts it (freed memory is given back
    first); unknown elsewhere.

    Attributes:
        mib: MiB, once the code is through; None where it is unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: float | None = None
        self.mib: float | None = None

    def __enter__(self) -> Self:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device) / 2**20
        elif _STATUS.exists():
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
            if trim is not None:
                trim(0)
            if _resident("VmHWM") is not None:
                _RESET.write_text("5", encoding="ascii")  # the peak starts anew at the present size
                self._before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        if self._device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self._device) / 2**20 - self._before
        elif (peak := _resident("VmHWM")) is not None:
            self.mib = peak - self._before


def _resident(name: str) -> float | None:
    """MiB; None where the system does not tell."""
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else None
