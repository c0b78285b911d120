"""Weights and computation in float16, inputs and outputs in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxscript import ir

from curlfx.errors import ConfigError, ModelError

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LARGEST = float(np.finfo(np.float16).max)  # 65504
TOLERANCE = 1e-2  # of the largest output; up to 1.4e-3 was seen in networks of tens of layers
_EVERYTHING = float(np.finfo(np.float32).max)  # stands for infinity in masks

Feeds = Mapping[str, np.ndarray[Any, Any]]


def check_precision(precision: str) -> None:
    """Raises: ConfigError for a precision that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: want one of {', '.join(PRECISIONS)}")


def to_float16(model: ir.Model, feeds: Feeds) -> ir.Model:
    """The same network in float16; ``Cast`` nodes keep its inputs and outputs in float32.

    Operators that have no float16 form, or lose by it (``TopK``, ``CumSum``, ``RoiAlign`` …), stay in float32.

    Args:
        model: In float32.
        feeds: Example inputs. What the network computes from them must be in the range of float16: onnxruntime computes
            float16 networks in float32 on most CPUs, where an overflow on other devices does not show.

    Raises: ModelError naming the weight, or the value computed from ``feeds``, beyond 65504; or when there is nothing
        in float32 to convert.
    """
    _check_weights(model)
    proto = ir.to_proto(model)
    _check_values(proto, feeds)
    made: ir.Model = ir.from_proto(convert_float_to_float16(proto, keep_io_types=True))
    made.graph.sort()  # the new nodes stand at the end
    return made


def _check_weights(model: ir.Model) -> None:
    weights = [value for value in _constants(model) if value.dtype == ir.DataType.FLOAT]
    if not weights and all(value.dtype != ir.DataType.FLOAT for value in model.graph.inputs):
        raise ModelError("precision = 'fp16': nothing in this network is float32; export it as it is")
    for value in weights:
        held = np.abs(value.numpy())
        if ((held > LARGEST) & (held < _EVERYTHING)).any():
            most = float(held[held < _EVERYTHING].max())
            raise ModelError(f"precision = 'fp16': {value.name} holds {most:.6g}, {_BEYOND}")


_BEYOND = f"beyond the {LARGEST:g} of float16; export this network as fp32, or scale it down there"


def _constants(model: ir.Model) -> Iterator[Any]:
    """Tensors that are initialisers, here and in subgraphs."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _check_values(proto: onnx.ModelProto, feeds: Feeds) -> None:
    """Compute every float value of the network in float32 and look at the largest finite one of each."""
    largest = {name: float(np.abs(value).max(initial=0)) for name, value in feeds.items()} | _largest(proto, feeds)
    beyond = {name: most for name, most in largest.items() if LARGEST < most < _EVERYTHING}
    if beyond:
        name, most = next(iter(beyond.items()))
        others = f" and {len(beyond) - 1} other values" if len(beyond) > 1 else ""
        raise ModelError(f"precision = 'fp16': on the example inputs {name!r} reaches {most:.6g}{others}, {_BEYOND}")


def _largest(proto: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    """The largest magnitude of every float value that a node of the main graph computes, in graph order."""
    watched = onnx.shape_inference.infer_shapes(proto)
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*watched.graph.value_info, *watched.graph.output)
    }
    names = [name for node in watched.graph.node for name in node.output if types.get(name) == onnx.TensorProto.FLOAT]
    del watched.graph.output[:]
    for number, name in enumerate(names):
        absolute, most = f"curlfx_absolute_{number}", f"curlfx_largest_{number}"
        watched.graph.node.append(onnx.helper.make_node("Abs", [name], [absolute]))
        watched.graph.node.append(onnx.helper.make_node("ReduceMax", [absolute], [most], keepdims=0))
        watched.graph.output.append(onnx.helper.make_tensor_value_info(most, onnx.TensorProto.FLOAT, []))
    if not names:
        return {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, dict(feeds))
    return {name: float(value) for name, value in zip(names, found, strict=True)}
