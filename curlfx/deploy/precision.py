"""Weights and computation in float16, inputs and outputs in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxscript import ir

from curlfx.deploy.parity import relative_error
from curlfx.errors import ConfigError, ModelError, VerificationError

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LARGEST = float(np.finfo(np.float16).max)  # 65504
LEAST = float(np.finfo(np.float16).smallest_subnormal)  # 2^-24
OVERFLOW = 65520.0  # from here on the nearest float16 is infinity
TOLERANCE = 1e-2  # of the largest output; up to 1.4e-3 was seen in networks of tens of layers
_EVERYTHING = float(np.finfo(np.float32).max)  # stands for infinity in masks

Feeds = Mapping[str, np.ndarray[Any, Any]]


def check_precision(precision: str) -> None:
    """Raises: ConfigError for a precision that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: want one of {', '.join(PRECISIONS)}")


def to_float16(model: ir.Model, feeds: Feeds) -> ir.Model:
    """The same network in float16; ``Cast`` nodes keep its inputs and outputs in float32.

    Weights are the nearest float16, 0 for those below half of the least one, 2^-24. A constant of one number never
    becomes 0: it may be all that avoids a division by zero.
    Operators that have no float16 form, or lose by it (``TopK``, ``CumSum``, ``RoiAlign`` …), stay in float32.

    The conversion is rehearsed in float32 with the weights of the file and every value rounded: onnxruntime computes
    float16 networks in float32 on the CPU, where neither an overflow nor the loss of digits on other devices shows.

    Args:
        model: In float32.
        feeds: Example inputs for the rehearsal.

    Raises: ModelError naming the weight, or the value computed from ``feeds``, beyond 65504; or when there is nothing
        in float32 to convert. VerificationError when rounding puts an output off by more than `TOLERANCE`.
    """
    is_masked = _check_weights(model)
    proto = ir.to_proto(model)
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    for tensor in _attributes(whole.graph):
        _fill(tensor, nearest(onnx.numpy_helper.to_array(tensor)))
    half = convert_float_to_float16(whole, keep_io_types=True, node_block_list=_fatal(proto))
    _round_weights(whole.graph, half.graph)
    _rehearse(proto, whole, feeds, is_masked=is_masked)
    made: ir.Model = ir.from_proto(half)
    made.graph.sort()  # the new nodes stand at the end
    return made


def nearest(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The nearest float16, ties to even; 65504 for finite numbers beyond; never 0 for a lone number that is not 0."""
    finite = np.isfinite(values)
    half: np.ndarray[Any, Any] = np.where(finite, np.clip(values, -LARGEST, LARGEST), values).astype(np.float16)
    if half.size == 1 and not half.any() and values.any():
        half = np.copysign(LEAST, values).astype(np.float16)
    return half


def _attributes(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Tensors in float32 that nodes hold, as ``Constant`` does; all of them are converted."""
    for one in _graphs(graph):
        for node in one.node:
            yield from (each.t for each in node.attribute if each.t.data_type == onnx.TensorProto.FLOAT)


def _round_weights(whole: onnx.GraphProto, half: onnx.GraphProto) -> None:
    """Put the nearest float16 into both graphs, for the weights that ``half`` holds in float16.

    The converter lifts whatever is below 5.96e-8. What only operators without a float16 form read stays in float32.
    """
    weights = {one.name: one for graph in _graphs(whole) for one in graph.initializer}
    for graph in _graphs(half):
        for tensor in graph.initializer:
            held = weights.get(tensor.name)
            if held is None or (held.data_type, tensor.data_type) != (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                continue
            values = nearest(onnx.numpy_helper.to_array(held))
            _fill(tensor, values, np.float16)
            _fill(held, values)


def _fill(tensor: onnx.TensorProto, values: np.ndarray[Any, Any], kind: type[np.floating[Any]] = np.float32) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(kind), tensor.name))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _fatal(proto: onnx.ModelProto) -> list[str]:
    """Names of the transpositions between a LayerNorm and a product, as in ViT; they stay in float32.

    In float16 onnxruntime 1.31 dies of them, with the whole process, when it opens the file for the CPU: its fusion of
    transpositions and products leaves a dangling node behind (disabling ``MatmulTransposeFusion`` avoids it).
    """
    made = {name: node for node in proto.graph.node for name in node.output}
    return [
        before.name
        for node in proto.graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if (before := made.get(name)) is not None
        and before.op_type == "Transpose"
        and (first := made.get(before.input[0])) is not None
        and first.op_type == "LayerNormalization"
    ]


def _check_weights(model: ir.Model) -> bool:
    """Whether the largest float32 number stands for infinity among the weights, as in masks; it becomes 65504.

    Raises: ModelError for any other weight beyond the range, and when nothing is in float32.
    """
    weights = [(name, tensor) for name, tensor in _constants(model) if tensor.dtype == ir.DataType.FLOAT]
    if not weights and all(value.dtype != ir.DataType.FLOAT for value in model.graph.inputs):
        raise ModelError("precision = 'fp16': nothing in this network is float32; export it as it is")
    is_masked = False
    for name, tensor in weights:
        held = np.abs(tensor.numpy())
        is_masked |= bool((held == _EVERYTHING).any())
        if ((held > LARGEST) & (held < _EVERYTHING)).any():
            most = float(held[held < _EVERYTHING].max())
            raise ModelError(f"precision = 'fp16': {name} holds {most:.6g}, {_BEYOND}")
    return is_masked


_BEYOND = f"beyond the {LARGEST:g} of float16; export this network as fp32, or scale it down there"


def _constants(model: ir.Model) -> Iterator[tuple[str | None, Any]]:
    """Names and tensors of what is constant, initialisers and attributes of nodes, here and in subgraphs."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield node.outputs[0].name, attribute.value


def _rehearse(proto: onnx.ModelProto, whole: onnx.ModelProto, feeds: Feeds, *, is_masked: bool) -> None:
    """Compute in float32, every value rounded to float16, and look at the largest one and at what comes out.

    ``whole`` is ``proto`` with the weights of the file.

    What is masked may overflow: such a network is judged by what comes out alone.

    Raises: ModelError naming the first value that is beyond the range; VerificationError naming an output that the
        rounding puts off by more than `TOLERANCE`.
    """
    rounded, watched = _rounded(whole)
    outputs = [value.name for value in proto.graph.output]
    found = _run(rounded, feeds)
    largest = {
        name: float(np.abs(value).max(initial=0)) for name, value in feeds.items() if value.dtype == np.float32
    }  # whole numbers, as places in an embedding, stay what they are
    largest |= {name: float(value) for name, value in zip(watched, found[len(outputs) :], strict=True)}
    beyond = {name: most for name, most in largest.items() if OVERFLOW <= most < _EVERYTHING}
    if beyond and not is_masked:
        name, most = next(iter(beyond.items()))
        raise ModelError(f"precision = 'fp16': on the example inputs {name!r} reaches {most:.6g}, {_BEYOND}")
    for name, wanted, given in zip(outputs, _run(proto, feeds), found[: len(outputs)], strict=True):
        error = relative_error(wanted, given) if np.issubdtype(wanted.dtype, np.floating) else 0.0
        if error > TOLERANCE:
            raise VerificationError(
                f"precision = 'fp16': rounding puts output {name!r} off by {error:.3g} of its largest value on the "
                f"example inputs; want at most {TOLERANCE:g}; export this network as fp32"
            )


def _rounded(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The network with every float that its main graph takes or computes rounded, and the names of those computed.

    These are in graph order. Behind the network's own outputs come their largest magnitudes before they are rounded.
    """
    made = onnx.shape_inference.infer_shapes(proto)
    graph, is_float = made.graph, onnx.TensorProto.FLOAT
    floats = {one.name for one in (*graph.value_info, *graph.output) if one.type.tensor_type.elem_type == is_float}
    entries = {one.name: f"{one.name}{_ROUNDED}" for one in graph.input if one.type.tensor_type.elem_type == is_float}
    nodes = [one for name, entry in entries.items() for one in _rounding(name, entry)]
    watched = []
    for node in list(graph.node):
        node.input[:] = [entries.get(name, name) for name in node.input]
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in floats:
                watched.append(name)
                node.output[place] = f"{name}{_RAW}"
                nodes += [*_rounding(node.output[place], name), *_magnitude(node.output[place])]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.output.extend(onnx.helper.make_tensor_value_info(f"{name}{_RAW}{_MOST}", is_float, []) for name in watched)
    return made, watched


_ROUNDED, _RAW, _MOST = "/rounded", "/raw", "/largest"


def _rounding(source: str, result: str) -> list[onnx.NodeProto]:
    """To float16 and back; what stands between the two keeps onnxruntime from dropping both."""
    half, held = f"{result}/half", f"{result}/held"
    return [
        onnx.helper.make_node("Cast", [source], [half], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Identity", [half], [held]),
        onnx.helper.make_node("Cast", [held], [result], to=onnx.TensorProto.FLOAT),
    ]


def _magnitude(source: str) -> list[onnx.NodeProto]:
    absolute = f"{source}/absolute"
    return [
        onnx.helper.make_node("Abs", [source], [absolute]),
        onnx.helper.make_node("ReduceMax", [absolute], [f"{source}{_MOST}"], keepdims=0),
    ]


def _run(proto: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    """What onnxruntime computes, node by node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))
