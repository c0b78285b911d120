"""Relevance of sums over positions: average pooling, means, sums, interpolation."""

from __future__ import annotations

from torch import Tensor

from curlfx.errors import ModelError
from curlfx.lrp.call import Call, Parts
from curlfx.lrp.distribute import proportional


def averaged(call: Call, relevance: Tensor) -> Parts:
    """``R_in = x · VJP(R / y)``: each position in proportion to what it adds, so that nothing is gained or lost.

    Shapes: those of the op; its first tensor is the only one that depends on the images.
    """
    name = call.operands()[0]
    (part,) = proportional(call, lambda x: call.run(**{name: x}), [call[name]], relevance)
    return {name: part}


def moments(call: Call, relevance: list[Tensor | None]) -> Parts:
    """``var_mean``, as normalisations written out have it: the mean as `averaged`.

    Raises: ModelError where the variance got relevance, which it does as no divisor.
    """
    spread, mean = relevance
    if spread is not None:
        raise ModelError(f"{call.place}: relevance of a variance has no rule; pass rules={{…}}")
    if mean is None:
        return {}
    (part,) = proportional(call, lambda x: call.run(self=x)[1], [call["self"]], mean)
    return {"self": part}
