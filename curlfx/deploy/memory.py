"""Memory that an ONNX file takes in onnxruntime, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from curlfx.deploy import memory_probe
from curlfx.deploy.session import check_runtime, option_values, with_cpu
from curlfx.errors import ConfigError, ModelError


def peak_memory(
    paths: Sequence[Path], feeds: Sequence[Mapping[str, Any]], *, provider: str = "cpu", threads: int = 1
) -> tuple[float, ...]:
    """Peak of resident memory of processes that each open one file and run it once on its ``feeds``.

    Units: MiB above the peak of a process that does the same with a file of one node: weights, in the file's layout
    and in the runtime's, activations, inputs and outputs. Memory of a GPU is not in it.
    Raises: ConfigError outside Linux, or for a provider or threads that are not there; ModelError when a process fails.
    """
    name = check_runtime(provider, threads)
    if not sys.platform.startswith("linux"):
        raise ConfigError("memory: it can be measured on Linux only")
    with TemporaryDirectory(prefix="curlfx-memory-") as folder:
        arrays = Path(folder) / "feeds.npz"
        common = {"options": option_values(threads), "providers": with_cpu(name), "arrays": str(arrays)}
        base = _peak_kib(_one_node(Path(folder) / "base.onnx"), {"x": np.zeros(1, np.float32)}, common)
        peaks = [_peak_kib(path, feed, common) for path, feed in zip(paths, feeds, strict=True)]
    return tuple(max(0, peak - base) / 1024 for peak in peaks)


def _peak_kib(path: Path, feeds: Mapping[str, Any], common: Mapping[str, Any]) -> int:
    keys = {name: f"arr_{place}" for place, name in enumerate(feeds)}  # as savez calls arrays without a name
    np.savez(common["arrays"], *feeds.values())
    job = {**common, "path": str(path), "feeds": keys}
    command = [sys.executable, "-P", memory_probe.__file__]  # -P: modules beside it must not hide Python's own
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"it ended with status {done.returncode}; want more memory"
        raise ModelError(f"{path}: cannot be run in a process of its own: {reason}")
    return int(done.stdout.split()[-1])


def _one_node(path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "one", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
