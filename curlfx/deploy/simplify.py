"""The graph optimiser onnxslim, where it is installed."""

from __future__ import annotations

import importlib.util

import onnx
from onnxscript import ir

from curlfx.errors import ConfigError, ModelError


def check_simplifier() -> None:
    """Raises: ConfigError when onnxslim is not installed."""
    if importlib.util.find_spec("onnxslim") is None:
        raise ConfigError("simplify: onnxslim is not installed; pip install 'curlfx[onnxslim]'")


def simplify(model: ir.Model) -> ir.Model:
    """What onnxslim makes of a model. Raises: ModelError when it fails; ConfigError when it is not installed."""
    check_simplifier()
    import onnxslim

    try:
        made = onnxslim.slim(ir.to_proto(model))
    except Exception as error:  # it raises whatever its parts raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"onnxslim fails on this network: {lines[0]}; export it without") from error
    if not isinstance(made, onnx.ModelProto):
        raise ModelError("onnxslim gave no network back; export it without")
    return ir.from_proto(made)
