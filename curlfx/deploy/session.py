"""Opening an ONNX file in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from curlfx.deploy.environment import cores
from curlfx.deploy.model_file import read_onnx
from curlfx.errors import ConfigError, ModelError

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


def open_session(path: Path, *, provider: str = "cpu", threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` with every graph optimisation on.

    Args:
        provider: Where to run; what it cannot run stays on the CPU.
        threads: Of one operator; 0 leaves it to onnxruntime (all cores).

    Raises: ConfigError for a provider that is not there; ModelError for a file that is missing, damaged or refused.
    """
    name = check_runtime(provider, threads)
    read_onnx(path)  # says what is wrong with a file; onnxruntime only says that something is
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    providers = list(dict.fromkeys([name, PROVIDERS["cpu"]]))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions derive from Exception alone
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path}: onnxruntime refuses it: {reason}") from error
    if session.get_providers()[0] != name:
        raise ConfigError(f"provider = {provider!r}: onnxruntime could not start it and fell back to the CPU")
    return session
