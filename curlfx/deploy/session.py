"""Opening an ONNX file in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from curlfx.deploy.environment import cores
from curlfx.deploy.memory_probe import make_options
from curlfx.deploy.model_file import read_onnx
from curlfx.errors import ConfigError, ModelError, first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
MOST_THREADS_PER_CORE = 8  # more only stop the machine
_ERRORS_ONLY = 3


def provider_name(provider: str) -> str:
    """Full name of a provider given by that name or by ours (``cpu``, ``cuda``, …).

    Raises: ConfigError when the installed onnxruntime does not have it.
    """
    name = PROVIDERS.get(provider.lower(), provider)
    available = onnxruntime.get_available_providers()
    if name not in available:
        hint = "; install onnxruntime-gpu in place of onnxruntime" if name == PROVIDERS["cuda"] else ""
        raise ConfigError(f"provider = {provider!r}: this onnxruntime has {', '.join(available)}{hint}")
    return name


def check_runtime(provider: str, threads: int) -> str:
    """Full name of the provider. Raises: ConfigError for one that is not there, or a number of threads out of range."""
    most = MOST_THREADS_PER_CORE * cores()
    if not 0 <= threads <= most:
        raise ConfigError(f"threads = {threads}: want 0 (all {cores()} cores) to {most}")
    return provider_name(provider)


def open_session(path: Path, *, provider: str = "cpu", threads: int = 0, profile_to: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` with every graph optimisation on.

    Args:
        provider: Where to run; what it cannot run stays on the CPU.
        threads: Of one operator; 0 leaves it to onnxruntime (all cores).
        profile_to: Beginning of the name of the profile, which onnxruntime then writes.

    Raises: ConfigError for a provider that is not there; ModelError for a file that is missing, damaged or refused.
    """
    name = check_runtime(provider, threads)
    read_onnx(path)  # says what is wrong with a file; onnxruntime only says that something is
    options = _options(threads, profile_to)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=with_cpu(name))
    except Exception as error:  # its exceptions derive from Exception alone
        raise ModelError(f"{path}: onnxruntime refuses it: {first_line(error)}") from error
    if session.get_providers()[0] != name:
        raise ConfigError(f"provider = {provider!r}: onnxruntime could not start it and fell back to the CPU")
    return session


def check_feeds(path: Path, session: Any, feeds: Mapping[str, Any]) -> None:
    """Raises: ConfigError unless ``feeds`` has the inputs of the session, and else only constants that it may set."""
    wanted = [value.name for value in session.get_inputs()]
    allowed = {*wanted, *(value.name for value in session.get_overridable_initializers())}
    if not set(wanted) <= set(feeds) <= allowed:
        raise ConfigError(f"{path}: its inputs are {', '.join(wanted)}; found {', '.join(feeds) or 'none'}")


def run_session(path: Path, session: Any, feeds: Mapping[str, Any], runs: int) -> None:
    """Run a session some times for nothing. Raises: ModelError when it fails on these inputs."""
    try:
        for _ in range(runs):
            session.run(None, feeds)
    except Exception as error:  # its exceptions derive from Exception alone
        raise ModelError(f"{path}: onnxruntime fails on these inputs: {first_line(error)}") from error


def with_cpu(name: str) -> list[str]:
    """Full names of the providers of a session: the CPU takes what the first cannot run."""
    return list(dict.fromkeys([name, PROVIDERS["cpu"]]))


def option_values(threads: int) -> dict[str, int]:
    """Attributes of `onnxruntime.SessionOptions` for every session of ours, as plain numbers."""
    return {
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "graph_optimization_level": int(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL),
        "log_severity_level": _ERRORS_ONLY,
    }


def _options(threads: int, profile_to: Path | None) -> Any:
    options = make_options(option_values(threads))
    if profile_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
    return options
