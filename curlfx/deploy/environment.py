"""What a measurement depends on besides the network: the machine and the versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

FLAGS = (
    "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
PACKAGES = ("curlfx", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy")


def environment() -> dict[str, Any]:
    """The machine, and the versions of what computes on it; JSON values only.

    Keys: ``cpu`` (model name), ``cpu_flags`` (of `FLAGS`, those it has), ``cores`` (this process may use), ``os``,
    ``python``, ``providers`` (of onnxruntime), ``versions`` (by package). Outside Linux ``cpu_flags`` is empty.
    """
    model, flags = _cpu(Path("/proc/cpuinfo"))
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cores": cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "providers": list(onnxruntime.get_available_providers()),
        "versions": {package: version(package) for package in PACKAGES if _installed(package)},
    }


def cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu(path: Path) -> tuple[str, frozenset[str]]:
    """Model name and instruction sets of the first processor in a ``/proc/cpuinfo``."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    entries: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        entries.setdefault(key.strip().lower(), value.strip())
    name = entries.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((entries.get("flags") or entries.get("features") or "").split())


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
