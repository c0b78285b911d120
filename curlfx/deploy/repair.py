"""What PyTorch's exporter leaves undone in a graph, and what onnxruntime would get wrong in it, put right."""

from __future__ import annotations

import numpy as np
from onnxscript import ir

_AXES = 3  # where the axes stand among the inputs of Pad


def repair(model: ir.Model) -> None:
    """Put a translated network right, in place: constants that are not registered, zeros before a max-pooling."""
    for graph in (model.graph, *model.graph.subgraphs()):
        taken = {value.name for node in graph for value in (*node.inputs, *node.outputs) if value is not None}
        taken |= {*graph.initializers, *(value.name for value in graph.inputs)}
        _register_constants(graph, taken)
        _keep_padding(graph, taken)


def _register_constants(graph: ir.Graph, taken: set[str | None]) -> None:
    """Make initialisers of the constants that nodes read and no graph holds.

    The exporter's optimiser turns a minimum of a maximum into a ``Clip`` and names the bounds after the clipped value:
    where several clip the same value (Gemma's q, k and v), all bounds but the first two are renamed and not registered,
    and the checker refuses the file ("nodes in a graph must be topologically sorted").
    """
    for value in {id(value): value for node in graph for value in node.inputs if value is not None}.values():
        if value.const_value is None or value.producer() is not None or value.graph is not None:
            continue
        if value.name in graph.initializers:
            value.name = _free_name(f"{value.name}", taken)
        graph.register_initializer(value)


def _keep_padding(graph: ir.Graph, taken: set[str | None]) -> None:
    """Name the axes of every padding that a max-pooling reads.

    A max-pooling never takes its own padding for the maximum; zeros that were padded before it can be the maximum.
    onnxruntime nonetheless moves padded zeros into the max-pooling, unless the padding names its axes, and is wrong
    wherever a border is negative throughout (the stem of BiT).
    Source: onnxruntime, core/optimizer/pad_fusion.cc; seen in version 1.31.
    """
    for node in list(graph):
        if node.op_type != "Pad" or len(node.inputs) > _AXES:
            continue
        pads = node.inputs[1].const_value if node.inputs[1] is not None else None
        if pads is None or all(reader.op_type != "MaxPool" for reader, _ in node.outputs[0].uses()):
            continue
        name = _free_name(f"{node.outputs[0].name}_axes", taken)
        axes = ir.Value(name=name, const_value=ir.tensor(np.arange(pads.size // 2, dtype=np.int64), name=name))
        graph.register_initializer(axes)
        node.resize_inputs(_AXES + 1)
        node.replace_input_with(_AXES, axes)


def _free_name(name: str, taken: set[str | None]) -> str:
    """A name that no value has, taken from now on."""
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
