"""An ONNX file: reading it, checking it, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from curlfx.errors import ModelError, first_line

DEFAULT_DOMAIN = ("", "ai.onnx")
PROTOBUF_LIMIT = 2**31 - 2**20  # bytes of one message, with room for the graph beside the weights


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file holds.

    Attributes:
        path: The file.
        size_bytes: Of the file and the weights beside it, if any.
        opset: Version of the default operator set.
        inputs: Shape by input name; a named or unknown axis is a string.
        outputs: Likewise.
        operators: How many nodes of each operator, functions and subgraphs included, most frequent first.
    """

    path: Path
    size_bytes: int
    opset: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    operators: dict[str, int]


def check_onnx(path: str | Path) -> OnnxFile:
    """Read an ONNX file, let ONNX's own checker judge it, and describe it.

    Raises: ModelError when it is missing, damaged, or refused by the checker.
    """
    path = Path(path)
    model = read_onnx(path)
    try:
        onnx.checker.check_model(str(path), full_check=False)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path}: the ONNX checker refuses it: {first_line(error)}") from error
    return describe(path, model)


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph in ``path``, without external weights.

    Raises: ModelError when it is missing or no ONNX file, or wants weights from outside its folder.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; want an ONNX file") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: no ONNX file, or a damaged one ({first_line(error)}); export it again") from error
    if not model.graph.node or not any(entry.domain in DEFAULT_DOMAIN for entry in model.opset_import):
        raise ModelError(f"{path}: no ONNX file, or an empty one; export it again")
    outside = next(
        (name for name in _external_files(model) if Path(name).is_absolute() or ".." in Path(name).parts), None
    )
    if outside is not None:
        raise ModelError(
            f"{path}: wants weights from outside its folder ({outside!r}), which is not read; export it again"
        )
    return model


def describe(path: Path, model: onnx.ModelProto) -> OnnxFile:
    """What ``model``, read from ``path``, holds."""
    weights = {path, *(path.parent / name for name in _external_files(model))}
    counts = Counter(node.op_type for node in _nodes(model))
    return OnnxFile(
        path=path,
        size_bytes=sum(one.stat().st_size for one in weights if one.is_file()),
        opset=next(entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAIN),
        inputs={value.name: _shape(value) for value in model.graph.input},
        outputs={value.name: _shape(value) for value in model.graph.output},
        operators=dict(counts.most_common()),
    )


def _external_files(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Everything that may say that its values are in another file."""
    attributes = [attribute for node in _nodes(model) for attribute in node.attribute]
    graphs = [model.graph, *(graph for one in attributes for graph in (one.g, *one.graphs))]
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
    for sparse in [one for graph in graphs for one in graph.sparse_initializer] + [
        one for attribute in attributes for one in (attribute.sparse_tensor, *attribute.sparse_tensors)
    ]:
        yield from (sparse.values, sparse.indices)
    for graph in graphs:
        yield from graph.initializer


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            pending += attribute.g.node
            pending += [inner for graph in attribute.graphs for inner in graph.node]


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in axes)
