"""Channel shuffles by their name: a reshape, a transpose and a reshape back become one ``index_select``.

So does ``aten.channel_shuffle``. A shuffle can only be narrowed in equal steps per block, a list of positions anywhere;
it costs the same to run: both copy whole planes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.graph.clean import sweep
from curlfx.graph.shapes import propagate, shape_of
from curlfx.graph.traced import TracedModel

_ops = torch.ops.aten
_LAST = {_ops.view.default, _ops.reshape.default, _ops.flatten.using_ints, _ops._unsafe_view.default}
_BETWEEN = {
    *_LAST,
    _ops.unflatten.int,
    _ops.permute.default,
    _ops.transpose.int,
    _ops.swapaxes.default,
    _ops.contiguous.default,
    _ops.clone.default,
}
_LONGEST = 5


def name_shuffles(traced: TracedModel) -> int:
    """Rewrite every chain of reshapes and transposes that only permutes one axis; returns how many there were."""
    found = 0
    for last in list(traced.graph.nodes):
        chain = _chain(last)
        if not chain or not _undisturbed(chain) or _follows_batch(chain):
            continue
        permutation = _permutation(chain)
        if permutation is None:
            continue
        axis, index = permutation
        if axis == 0 and traced.dynamic_batch:
            continue
        source = chain[0].args[0]
        name = f"curlfx_shuffle_{found}"
        traced.add_buffer(name, index)
        with traced.graph.inserting_before(last):
            picked = traced.graph.call_function(_ops.index_select.default, (source, axis, traced.node_of(name)))
        picked.meta = dict(last.meta)
        last.replace_all_uses_with(picked)
        found += 1
    if found:
        sweep(traced.graph)
        propagate(traced)
        traced.recompile()
    return found


def _chain(last: Node) -> list[Node]:
    """The nodes from the first reshape to ``last``, where the shape comes back to what it was; [] otherwise."""
    if last.op == "call_function" and last.target is _ops.channel_shuffle.default:
        return [last]
    if last.op != "call_function" or last.target not in _LAST:
        return []
    chain = [last]
    while len(chain) < _LONGEST:
        source = chain[0].args[0]
        if not isinstance(source, Node) or not isinstance(source.meta.get("val"), Tensor):
            return []
        if len(chain) > 2 and shape_of(source) == shape_of(last) and _transposes(chain):
            return chain
        if source.op != "call_function" or source.target not in _BETWEEN:
            return []
        chain.insert(0, source)
    return []


def _transposes(chain: list[Node]) -> bool:
    return any(node.target in (_ops.permute.default, _ops.transpose.int, _ops.swapaxes.default) for node in chain)


def _undisturbed(chain: list[Node]) -> bool:
    """Whether nothing is written in place while the chain runs, and nothing else reads what lies within it."""
    node = chain[0]
    while node is not chain[-1]:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return False
        node = node.next
    within = [user for node in chain[:-1] for user in node.users if isinstance(user.meta.get("val"), Tensor)]
    return all(user in chain for user in within)


def _follows_batch(chain: list[Node]) -> bool:
    """Whether a size that depends on the batch stands anywhere but first: other batches then move other things."""
    sizes = [item for node in chain for item in node.args[1:] if isinstance(item, (list, tuple))]
    return any(isinstance(size, Node) for written in sizes for size in written[1:])


def _permutation(chain: list[Node]) -> tuple[int, Tensor] | None:
    """The axis that the chain permutes and where each position comes from; None where it does anything else."""
    shape = shape_of(chain[0].args[0])  # type: ignore[arg-type]
    moved: tuple[int, Tensor] | None = None
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        marks = torch.arange(size).reshape([-1 if other == axis else 1 for other in range(len(shape))])
        result = _run(chain, marks.expand(shape))
        line = result[tuple(slice(None) if other == axis else slice(0, 1) for other in range(len(shape)))]
        if not bool((result == line).all()):
            return None
        if not bool((line == marks).all()):
            if moved is not None:
                return None
            moved = axis, line.reshape(-1).clone()
    return moved


def _run(chain: list[Node], value: Tensor) -> Tensor:
    for node in chain:
        target = _ops.reshape.default if node.target in (_ops.view.default, _ops._unsafe_view.default) else node.target
        arguments = [_number(item) for item in node.args[1:]]
        keywords = {name: _number(item) for name, item in node.kwargs.items() if name != "memory_format"}
        value = target(value, *arguments, **keywords)  # type: ignore[operator]
    return value


def _number(item: object) -> object:
    """Sizes computed in the graph, at the example inputs."""
    if isinstance(item, Node):
        return item.meta["val"]
    return [_number(element) for element in item] if isinstance(item, (list, tuple)) else item
