"""Rules of recurrent layers: LSTM, GRU and Elman networks, as one call over all steps, layers and directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.labels.arrays import Arrays, along, flat, support
from curlfx.ops.call import OpCall

_MIXED = "a recurrent layer runs along this axis"


def recurrent(call: OpCall) -> list[Arrays]:
    """Labels of ``aten.lstm`` / ``gru`` / ``rnn_tanh`` / ``rnn_relu``: inputs are contracted, hidden units are made.

    A hidden unit is one row per gate of both weights and biases, one column of the recurrent weight, and one element of
    the state. The states of all layers and directions are one tensor, so their units are tied position by position.
    Units are read inside the call, where no gate can stand: the recurrent weights, and the input weights of the layers
    above the first, are gated in their place.

    Shapes: input ``(T, N, C)``, ``(N, T, C)`` or ``(T, C)``; states ``(layers * directions, N, H)``; weights
    ``(gates * H, C)`` and ``(gates * H, H)``; output ``(..., directions * H)`` and the last states.
    Raises: nothing; packed sequences and projected states freeze what they touch.
    Source: the formulas in the documentation of ``torch.nn.LSTM``, ``GRU`` and ``RNN``.
    """
    cells = _cells(call)
    states = _states(call)
    directions = 2 if call.number("bidirectional") else 1
    if cells is None or len(cells) != directions * int(call.number("num_layers")):
        for tensor in call.tensors():
            call.freeze(call.arrays(tensor), f"{call.node.target!s} with projections or packed steps is not followed")
        return [() for _ in call.node.meta["val"]]
    units = _units(call, cells)
    call.read("input", [len(call.shape("input")) - 1])
    columns = _columns(call, "input", len(call.shape("input")) - 1)
    for place, weights in enumerate(cells):
        _tie_inputs(call, weights[0], columns)
        call.read(weights[1], [1], parameters=True)
        if place >= directions:
            call.read(weights[0], [1], parameters=True)
        if place % directions == directions - 1:
            columns = None if units is None else torch.cat([units] * directions)
    if units is not None:
        for state in states:
            _tie_state(call, state, units)
    return _laid_out(call, units, directions)


def cell(call: OpCall) -> Arrays | list[Arrays]:
    """Labels of ``aten.lstm_cell`` / ``gru_cell`` / ``rnn_*_cell``: one step of :func:`recurrent`.

    Shapes: input ``(N, C)``, states ``(N, H)``, weights ``(gates * H, C)`` and ``(gates * H, H)``; output the states.
    """
    weights = [call.arg(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    units = _units(call, [[weight for weight in weights if isinstance(weight, Node)]])
    call.read("input", [len(call.shape("input")) - 1])
    _tie_inputs(call, weights[0], _columns(call, "input", len(call.shape("input")) - 1))
    if units is not None:
        call.read(_states(call)[0], [len(call.shape(_states(call)[0])) - 1])
        for state in _states(call):
            _tie_state(call, state, units)
    arrays = () if units is None else (along(units, len(call.out_shape), len(call.out_shape) - 1),)
    return [arrays for _ in call.node.meta["val"]] if isinstance(call.node.meta["val"], tuple) else arrays


def _states(call: OpCall) -> list[Node]:
    hx = call.arg("hx")
    return [hx] if isinstance(hx, Node) else list(hx)


def _cells(call: OpCall) -> list[list[Node]] | None:
    """Parameters per layer and direction: weight of the input, weight of the state, biases; None for other forms."""
    if not call.has("input"):  # packed steps
        return None
    params, width = list(call.arg("params")), 4 if call.number("has_biases") else 2
    cells = [params[start : start + width] for start in range(0, len(params), width)]
    hidden = call.shape(_states(call)[0])[-1]
    plain = all(len(c) == width and len(call.shape(c[1])) == 2 and call.shape(c[1])[1] == hidden for c in cells)
    return cells if plain and all(len(call.shape(b)) == 1 for c in cells for b in c[2:]) else None


def _units(call: OpCall, cells: list[list[Node]]) -> Tensor | None:
    """Labels ``(H,)`` of the hidden units, tied across gates, weights, layers and directions; None for a single one."""
    units: Tensor | None = None
    for weights in cells:
        recurrence = weights[1]
        columns = [array for array in call.arrays(recurrence) if support(array) == (1,)]
        call.produce(columns)
        for array in columns:
            units = flat(array) if units is None else units
            call.tie(units, flat(array))
        for weight in weights:
            for array in call.arrays(weight):
                if support(array) != (0,):
                    continue
                if units is None:
                    call.freeze(array, "gates of a single hidden unit")
                else:
                    call.tie(flat(array).reshape(-1, units.numel()), units)
    return units


def _columns(call: OpCall, of: str, axis: int) -> Tensor | None:
    """Labels ``(C,)`` along the last axis of the input; the batch passes nowhere and labels along steps freeze."""
    arrays = call.keep_only(call.arrays(of), (axis,), _MIXED)
    for other in arrays[1:]:
        call.tie(arrays[0], other)
    return flat(arrays[0]) if arrays else None


def _tie_inputs(call: OpCall, weight: Node, columns: Tensor | None) -> None:
    """Tie the columns of an input weight to what arrives."""
    found = [array for array in call.arrays(weight) if support(array) == (1,)]
    for array in found:
        if columns is None:
            call.freeze(array, "contracted with an axis whose channels have no labels")
        else:
            call.tie(flat(array), columns)


def _tie_state(call: OpCall, state: Node, units: Tensor) -> None:
    """The units of an initial state, along its last axis; a state without labels there freezes them."""
    last = len(call.shape(state)) - 1
    arrays = call.keep_only(call.arrays(state), (last,), _MIXED)
    if not arrays:
        call.freeze(units, "the initial state has no labels")
    for array in arrays:
        call.tie(flat(array), units)


def _laid_out(call: OpCall, units: Tensor | None, directions: int) -> list[Arrays]:
    """Labels of the outputs: of every step, then of the last states."""
    result: list[Arrays] = []
    for place, value in enumerate(call.node.meta["val"]):
        labels = None if units is None else torch.cat([units] * directions) if place == 0 else units
        ndim = len(value.shape)
        result.append(() if labels is None else (along(labels, ndim, ndim - 1),))
    return result
