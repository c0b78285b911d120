"""Rules of contractions: linear, matmul and its kin, einsum, scaled dot-product attention, embedding."""

from __future__ import annotations

from torch.fx import Node

from curlfx.labels.arrays import Arrays, flat, support
from curlfx.ops.call import OpCall
from curlfx.ops.contract import Factor, contract
from curlfx.ops.meet import Operand, meet

_BATCH = "ABCDEFGHIJ"
_QKV = ("query", "key", "value")


def with_bias(call: OpCall, arrays: Arrays, bias: str, axis: int) -> Arrays:
    """Tie a bias ``(K,)`` to the result's channels at ``axis``."""
    if not call.has(bias):
        return arrays
    ndim = len(call.out_shape)
    shape = [1] * ndim
    shape[axis] = call.shape(bias)[0]
    laid = tuple(array.reshape(shape) for array in call.arrays(bias))
    return meet(call, [Operand(arrays, call.out_shape), Operand(laid, tuple(shape))])


def factor(call: OpCall, of: str | Node, letters: str, out: str) -> Factor:
    """An argument as an operand of a contraction, marked as read by it along the axes that ``out`` lacks."""
    call.read(of, [axis for axis, letter in enumerate(letters) if letter not in out])
    return Factor(call.arrays(of), call.shape(of), letters)


def linear(call: OpCall) -> Arrays:
    """Labels of ``aten.linear``: contracted axis tied, rows of the weight label the output.

    Shapes: input ``(..., C)``, weight ``(K, C)``, bias ``(K,)``, output ``(..., K)``.
    Source: aten/src/ATen/native/Linear.cpp.
    """
    rows = _BATCH[: len(call.shape("input")) - 1]
    result = rows + "k"
    factors = [factor(call, "input", rows + "c", result), factor(call, "weight", "kc", result)]
    out = contract(call, factors, result, layer=call.arg("input").op != "get_attr")
    _produced(call, "weight", 0)
    return with_bias(call, out, "bias", len(rows))


def matmul(call: OpCall) -> Arrays:
    """Labels of ``aten.matmul`` / ``mm`` / ``bmm``: last axis of one against the one but last of the other.

    Shapes: first ``(..., M, K)`` or ``(K,)``, second ``(..., K, N)`` or ``(K,)``.
    """
    first, second = call.tensors()[:2] if len(call.tensors()) > 1 else call.tensors() * 2
    return _matmul(call, first, second)


def _matmul(call: OpCall, first: Node, second: Node) -> Arrays:
    n, m = len(call.shape(first)), len(call.shape(second))
    batch = max(n, m) - 2
    letters = _BATCH[: max(batch, 0)]
    left = "k" if n == 1 else letters[len(letters) - (n - 2) :] + "mk"
    right = "k" if m == 1 else letters[len(letters) - (m - 2) :] + "kn"
    out = letters + ("m" if n > 1 else "") + ("n" if m > 1 else "")
    result = contract(call, [factor(call, first, left, out), factor(call, second, right, out)], out)
    for node, axes, axis in ((first, n, n - 2), (second, m, m - 1)):
        if node.op == "get_attr" and axes > 1:
            _produced(call, node, axis)
    return result


def addmm(call: OpCall) -> Arrays:
    """Labels of ``aten.addmm`` / ``baddbmm``: a contraction whose result meets the first argument.

    Shapes: self broadcastable to ``(..., M, N)``, the two matrices as in matmul.
    """
    matrices = [name for name in ("mat1", "mat2", "batch1", "batch2") if call.has(name)]
    product = _matmul(call, call.arg(matrices[0]), call.arg(matrices[1]))
    return meet(call, [Operand(product, call.out_shape), Operand(call.arrays("self"), call.shape("self"))])


def einsum(call: OpCall) -> Arrays:
    """Labels of ``aten.einsum``: the equation names the axes.

    Ellipses and repeated letters within one operand are not followed: their operands freeze.
    """
    equation = str(call.arg("equation")).replace(" ", "")
    tensors = call.tensors()
    left, arrow, out = equation.partition("->")
    inputs = left.split(",")
    if not arrow or "." in equation or len(inputs) != len(tensors) or any(len(set(x)) < len(x) for x in inputs):
        for tensor in tensors:
            call.freeze(call.arrays(tensor), f"einsum {equation} is not followed")
        return ()
    result = contract(call, [factor(call, t, x, out) for t, x in zip(tensors, inputs, strict=True)], out)
    for tensor, letters in zip(tensors, inputs, strict=True):
        if tensor.op == "get_attr" and not call.fixed:
            for axis, letter in enumerate(letters):
                if letter in out:
                    _produced(call, tensor, axis)
    return result


def attention(call: OpCall) -> Arrays:
    """Labels of ``aten.scaled_dot_product_attention``: two contractions with a softmax over keys between.

    With grouped queries every head of key and value serves several neighbouring heads of the query.

    Shapes: query ``(..., L, E)``, key ``(..., S, E)``, value ``(..., S, V)``, output ``(..., L, V)``.
    Source: the formula in the documentation of ``torch.nn.functional.scaled_dot_product_attention``.
    """
    ndim = len(call.out_shape)
    if any(len(call.shape(name)) != ndim for name in ("query", "key", "value")):
        for name in ("query", "key", "value"):
            call.freeze(call.arrays(name), "attention of tensors of different ranks")
        return ()
    batch = _BATCH[: ndim - 2]
    keys = len(batch) + 1
    query, key, value = (_headed(call, name, batch + x) for name, x in zip(_QKV, ("le", "se", "sv"), strict=True))
    scores = contract(call, [query, key], batch + "ls")
    scores = call.keep_only(scores, range(keys), "a softmax runs over these")
    shape = (*call.out_shape[:-1], call.shape("key")[-2])
    if call.has("attn_mask"):
        mask = Operand(call.arrays("attn_mask"), call.shape("attn_mask"))
        scores = call.keep_only(meet(call, [Operand(scores, shape), mask]), range(keys), "a softmax runs over these")
    return contract(call, [Factor(scores, shape, batch + "ls"), value], batch + "lv")


def _headed(call: OpCall, name: str, letters: str) -> Factor:
    """One of query, key and value, with as many heads as the query has; the axis that is summed is read."""
    axis = len(letters) - (2 if name == "value" else 1)
    call.read(name, [axis])
    arrays, shape, heads = call.arrays(name), call.shape(name), len(letters) - 3
    if not call.number("enable_gqa", False) or shape[heads] == call.shape("query")[heads]:
        return Factor(arrays, shape, letters)
    times = call.shape("query")[heads] // shape[heads]
    repeated = [a.repeat_interleave(times, heads) if a.shape[heads] > 1 else a for a in arrays]
    return Factor(tuple(repeated), (*shape[:heads], shape[heads] * times, *shape[heads + 1 :]), letters)


def embedding(call: OpCall) -> Arrays:
    """Labels of ``aten.embedding``: rows are looked up and stay, columns label the output's last axis.

    Shapes: weight ``(V, C)``, indices any, output ``(*indices, C)``.
    """
    ndim = len(call.out_shape)
    columns = [array for array in call.arrays("weight") if support(array) == (1,)]
    call.freeze([array for array in call.arrays("weight") if support(array) != (1,)], "rows are looked up by index")
    call.freeze(call.arrays("indices"), "used as an index")
    call.produce(columns)
    return tuple(flat(array).reshape((1,) * (ndim - 1) + (-1,)) for array in columns)


def _produced(call: OpCall, of: str | Node, axis: int) -> None:
    call.produce([array for array in call.arrays(of) if support(array) == (axis,)])
