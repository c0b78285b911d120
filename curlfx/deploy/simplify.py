"""The graph optimiser onnxslim, where it is installed."""

from __future__ import annotations

import importlib.util

import onnx
from onnxscript import ir

from curlfx.errors import ConfigError, ModelError, first_line


def check_simplifier() -> None:
    """Raises: ConfigError when onnxslim is not installed."""
    if importlib.util.find_spec("onnxslim") is None:
        raise ConfigError("simplify: onnxslim is not installed; pip install 'curlfx[onnxslim]'")


def simplify(model: ir.Model) -> ir.Model:
    """What onnxslim makes of a model, with the same inputs and outputs; it would drop inputs that nobody reads.

    Raises: ModelError when it fails; ConfigError when it is not installed.
    """
    check_simplifier()
    import onnxslim

    before = ir.to_proto(model).graph
    try:
        made = onnxslim.slim(ir.to_proto(model))
    except Exception as error:  # it raises whatever its parts raise
        raise ModelError(f"onnxslim fails on this network: {first_line(error)}; export it without") from error
    if not isinstance(made, onnx.ModelProto):
        raise ModelError("onnxslim gave no network back; export it without")
    _keep_ends(before, made.graph)
    return ir.from_proto(made)


def _keep_ends(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    """Give a graph back the inputs it lost. Raises: ModelError when it takes or gives anything else than before."""
    inputs = {value.name: value for value in after.input}
    outputs = [value.name for value in after.output]
    wanted = [value.name for value in before.output]
    if outputs != wanted or not inputs.keys() <= {value.name for value in before.input}:
        raise ModelError(
            f"onnxslim changes what this network takes or gives: inputs {', '.join(inputs)}, outputs "
            f"{', '.join(outputs)}; export it without"
        )
    kept = [inputs.get(value.name, value) for value in before.input]
    del after.input[:]
    after.input.extend(kept)
