"""Rules of products that are no plain matrix product: inner and outer products, tensordot, bilinear, distances."""

from __future__ import annotations

from curlfx.labels.arrays import Arrays, support
from curlfx.ops.call import OpCall
from curlfx.ops.contract import Factor, contract
from curlfx.ops.contraction import factor, with_bias
from curlfx.ops.meet import Operand, meet

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVW"


def inner(call: OpCall) -> Arrays:
    """Labels of ``aten.inner``: the last axes are contracted. Shapes: ``(..., K)``, ``(..., K)``."""
    n, m = len(call.shape("self")), len(call.shape("other"))
    left, right = _LETTERS[: n - 1], _LETTERS[n - 1 : n + m - 2]
    out = left + right
    return contract(call, [factor(call, "self", left + "k", out), factor(call, "other", right + "k", out)], out)


def outer(call: OpCall) -> Arrays:
    """Labels of ``aten.outer``: both axes pass. Shapes: ``(M,)``, ``(N,)``, output ``(M, N)``."""
    first, second = call.tensors() if len(call.tensors()) > 1 else call.tensors() * 2
    return contract(call, [factor(call, first, "m", "mn"), factor(call, second, "n", "mn")], "mn")


def tensordot(call: OpCall) -> Arrays:
    """Labels of ``aten.tensordot``: the named axes are contracted pair by pair, the others pass in order."""
    n, m = len(call.shape("self")), len(call.shape("other"))
    left, right = list(_LETTERS[:n]), list(_LETTERS[n : n + m])
    summed = set()
    for one, other in zip(call.number("dims_self"), call.number("dims_other"), strict=True):
        right[int(other) % m] = left[int(one) % n]
        summed.add(left[int(one) % n])
    out = "".join(letter for letter in (*left, *right) if letter not in summed)
    factors = [factor(call, "self", "".join(left), out), factor(call, "other", "".join(right), out)]
    return contract(call, factors, out)


def addmv(call: OpCall) -> Arrays:
    """Labels of ``aten.addmv``: a matrix times a vector meets ``self``. Shapes: ``(M,)``, ``(M, K)``, ``(K,)``."""
    return _met(call, contract(call, [factor(call, "mat", "mk", "m"), factor(call, "vec", "k", "m")], "m"))


def addbmm(call: OpCall) -> Arrays:
    """Labels of ``aten.addbmm``: as baddbmm, summed over the batch.

    Shapes: self ``(M, N)``, batches ``(B, M, K)`` and ``(B, K, N)``, output ``(M, N)``.
    """
    factors = [factor(call, "batch1", "bmk", "mn"), factor(call, "batch2", "bkn", "mn")]
    return _met(call, contract(call, factors, "mn"))


def _met(call: OpCall, product: Arrays) -> Arrays:
    return meet(call, [Operand(product, call.out_shape), Operand(call.arrays("self"), call.shape("self"))])


def bilinear(call: OpCall) -> Arrays:
    """Labels of ``aten.bilinear``: both inputs are contracted, rows of the weight label the output.

    Shapes: inputs ``(..., I)`` and ``(..., J)``, weight ``(K, I, J)``, bias ``(K,)``, output ``(..., K)``.
    """
    rows = _LETTERS[: len(call.shape("input1")) - 1]
    factors = [
        factor(call, "input1", rows + "i", rows + "k"),
        factor(call, "input2", rows + "j", rows + "k"),
        factor(call, "weight", "kij", rows + "k"),
    ]
    out = contract(call, factors, rows + "k")
    call.produce([array for array in call.arrays("weight") if support(array) == (0,)])
    return with_bias(call, out, "bias", len(rows))


def distances(call: OpCall) -> Arrays:
    """Labels of ``aten.cdist``: a sum over the last axes, to which a channel that both sides lose adds nothing.

    Shapes: ``(..., P, M)`` and ``(..., R, M)``, output ``(..., P, R)``.
    """
    left, right = call.shape("x1"), call.shape("x2")
    count = len(call.out_shape) - 2
    letters = _LETTERS[:count]
    factors = [
        _gated(call, "x1", letters[count - len(left) + 2 :] + "pm", "m"),
        _gated(call, "x2", letters[count - len(right) + 2 :] + "rm", "m"),
    ]
    return contract(call, factors, letters + "pr")


def _gated(call: OpCall, of: str, letters: str, summed: str) -> Factor:
    """As :func:`factor`, for a sum that is no product: a parameter counts by itself, so it gets a gate too."""
    if summed in letters:
        call.read(of, [letters.index(summed)], parameters=True)
    return Factor(call.arrays(of), call.shape(of), letters)


def cosine(call: OpCall) -> Arrays:
    """Labels of ``aten.cosine_similarity``: a product and two norms over ``dim``, where the two inputs are tied.

    Shapes: both inputs broadcastable to ``(..., n, ...)``, output without ``dim``.
    """
    ndim = max(len(call.shape(name)) for name in ("x1", "x2"))
    axis = int(call.number("dim", 1)) % ndim
    letters = _LETTERS[:ndim]
    factors = [_gated(call, name, letters[ndim - len(call.shape(name)) :], letters[axis]) for name in ("x1", "x2")]
    return contract(call, factors, letters.replace(letters[axis], ""))


def pairwise(call: OpCall) -> Arrays:
    """Labels of ``aten.pairwise_distance``: the inputs meet; channels along the last axis stay.

    It adds ``eps`` to every difference, also to those of channels that are gone.
    """
    arrays = meet(call, [Operand(call.arrays(name), call.shape(name)) for name in ("x1", "x2")])
    ndim = max(len(call.shape(name)) for name in ("x1", "x2"))
    arrays = call.keep_only(arrays, range(ndim - 1), "a distance adds eps for each of these channels")
    if bool(call.number("keepdim", False)):
        return arrays
    return tuple(array.reshape(array.shape[:-1]) for array in arrays)
