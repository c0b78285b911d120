"""Run passes one after the other, and believe none of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from curlfx.errors import InvariantError
from curlfx.graph import TracedModel, check, show, sweep
from curlfx.passes.base import Pass


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name: The pass.
        changed: Whether it changed anything.
        seconds: Wall-clock time, checks included.
    """

    name: str
    changed: bool
    seconds: float


def run(
    traced: TracedModel, passes: Sequence[Pass], *, own_weights: bool = True
) -> tuple[TracedModel, list[PassRecord]]:
    """Apply passes in order, each to a clone, and verify after each one.

    The input stays as it is. With ``own_weights`` the result shares no tensor with it; without, tensors that no pass
    replaced are the input's own, which costs nothing and is right for a network that is only read.
    Raises: UsageError from a pass that refuses the network; InvariantError for a pass that breaks it, that changes its
        input, or that says "unchanged" of a change.
    """
    current, records = traced, []
    for each in passes:
        start = time.perf_counter()
        following = _apply(each, current)
        records.append(PassRecord(each.name, following is not None, time.perf_counter() - start))
        current = following or current
    if own_weights:
        current = current.clone() if current is traced else current
        _own(current, traced)
    return current, records


def _apply(each: Pass, before: TracedModel) -> TracedModel | None:
    """The network after one pass, or None where the pass changes nothing."""
    each.requires(before)
    seen, after = _state(before), before.clone()
    changed = each.rewrite(after)
    if _state(before) != seen:
        raise InvariantError(f"{each.name} changed its input; a bug in this pass, please report it")
    if not changed:
        if _state(after) != seen:
            raise InvariantError(
                f"{each.name} says that it changed nothing, and did; a bug in this pass, please report it"
            )
        return None
    sweep(after.graph)
    try:
        check(after)
        each.ensures(before, after)
    except InvariantError as fault:
        raise InvariantError(f"after {each.name}: {fault}") from fault
    after.recompile()
    return after


def _state(traced: TracedModel) -> tuple[str, bool, dict[str, tuple[int, int]]]:
    """Everything a pass could change: the printed graph, the mode, and which tensors in which version."""
    tensors = traced.tensors()
    return show(traced), traced.module.training, {name: (id(t), _version(t)) for name, t in tensors.items()}


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _own(traced: TracedModel, source: TracedModel) -> None:
    """Copy, once, the tensors that a network still shares with the one it came from."""
    shared = {id(tensor) for tensor in source.tensors().values()}
    held = traced.tensors()
    traced.set_parameters({name: t.detach().clone() for name, t in held.items() if id(t) in shared})
