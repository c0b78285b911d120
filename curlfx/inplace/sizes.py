"""Widths that other modules keep as attributes: found by name, and by what became of the same number in the graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from curlfx.inplace.attributes import named_arguments
from curlfx.inplace.calls import Call, Calls

_INPUT = re.compile(r"in_?(channels|features|chs|planes|dim)")
_OUTPUT = re.compile(r"out_?(channels|features|chs|planes|dim)")
_WIDTH = re.compile(
    r"(\w+_)?(channels|chs|features|dims?|heads|groups|planes|head_size|hidden_size)|d_model|n_embd|n_head|hidden|"
    r"dim_(per_)?head|normalized_shape|intermediate_size|split_(sizes|indexes)|nh_[kqv]+d"
)
"""Names under which modules keep a width. Attributes of other names are never touched."""

_LITERALS = frozenset(
    {"size", "sizes", "shape", "split_size", "split_sizes", "normalized_shape", "groups", "num_groups"}
)
_SMALLEST = 2
_SEQUENCE = 3

Pair = tuple[int, int]


def other_widths(module: nn.Module, calls: Calls, before: dict[int, Tensor]) -> dict[str, Any]:
    """New values for a module's integer attributes; only those where all that is known of the old number agrees.

    The number is looked for in the literals of the module's own calls, then in the shapes that they read and return
    and in its own parameters, then in the parameters below it. For an attribute that the module's code reads, the first
    place that has it decides; for one that only tells people, all must agree.

    Args:
        module: With its parameters already narrow.
        calls: What it does in the graph.
        before: The intact tensor of each narrow one, by ``id``.
    """
    found = {}
    used = _names_used(type(module))
    for name, value in vars(module).items():
        if _WIDTH.fullmatch(name.lstrip("_")):
            places = list(_evidence(name.lstrip("_"), module, calls, before))
            new = _follow(value, places if name in used else [[pair for place in places for pair in place]])
            if new != value:
                found[name] = new
    return found


def _names_used(kind: type) -> set[str]:
    """Names that the methods of a class read, other than those that only make or describe it."""
    members = [vars(base) for base in kind.__mro__ if base not in (nn.Module, object)]
    functions = [
        member
        for each in members
        for name, member in each.items()
        if isinstance(member, FunctionType) and name not in ("__init__", "extra_repr")
    ]
    return {name for function in functions for name in _names_in(function.__code__)}


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _follow(value: Any, places: list[list[Pair]]) -> Any:
    if type(value) is int:
        return _new_size(value, places)
    if type(value) in (list, tuple) and value and all(type(item) is int for item in value):
        return type(value)(_new_size(item, places) for item in value)
    return value


def _new_size(size: int, places: list[list[Pair]]) -> int:
    if size >= _SMALLEST:
        for place in places:
            news = {new for old, new in place if old == size}
            if news:
                return news.pop() if len(news) == 1 else size
    return size


def _evidence(name: str, module: nn.Module, calls: Calls, before: dict[int, Tensor]) -> Iterator[list[Pair]]:
    if _INPUT.fullmatch(name):
        yield _ends(calls.within, first=True)
    if _OUTPUT.fullmatch(name):
        yield _ends(calls.within, first=False)
    yield [pair for call in calls.own for pair in _literals(call)]
    yield [*(pair for call in calls.own for pair in _shapes(call)), *_parameters(module, before, recurse=False)]
    yield _parameters(module, before, recurse=True)


def _ends(calls: tuple[Call, ...], *, first: bool) -> list[Pair]:
    """Channel axis of what a module reads or returns: the second of images, the last of sequences."""
    if not calls:
        return []
    end = calls[0] if first else calls[-1]
    dense, slim = (end.dense.args[0], end.slim.args[0]) if first and end.dense.args else (end.dense, end.slim)
    sizes = _axes(dense, slim)
    return sizes[1:2] if len(sizes) > _SEQUENCE else sizes[-1:]


def _literals(call: Call) -> list[Pair]:
    if call.dense.target in (operator.mul, operator.floordiv):
        return _numbers(list(call.dense.args), list(call.slim.args))
    dense, slim = named_arguments(call.dense), named_arguments(call.slim)
    return [pair for name in _LITERALS & dense.keys() & slim.keys() for pair in _numbers(dense[name], slim[name])]


def _numbers(dense: Any, slim: Any) -> list[Pair]:
    if isinstance(dense, int) and isinstance(slim, int):
        return [(dense, slim)]
    if isinstance(dense, (list, tuple)) and isinstance(slim, (list, tuple)) and len(dense) == len(slim):
        return [
            (old, new) for old, new in zip(dense, slim, strict=True) if isinstance(old, int) and isinstance(new, int)
        ]
    return []


def _shapes(call: Call) -> list[Pair]:
    reads = [
        (dense, slim)
        for dense, slim in zip(call.dense.all_input_nodes, call.slim.all_input_nodes, strict=False)
        if dense.name == slim.name
    ]
    return [pair for dense, slim in [*reads, (call.dense, call.slim)] for pair in _axes(dense, slim)]


def _axes(dense: Any, slim: Any) -> list[Pair]:
    old, new = (node.meta.get("val") if isinstance(node, Node) else None for node in (dense, slim))
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or old.ndim != new.ndim:
        return []
    return list(zip(old.shape, new.shape, strict=True))


def _parameters(module: nn.Module, before: dict[int, Tensor], *, recurse: bool) -> list[Pair]:
    tensors = [*module.parameters(recurse), *module.buffers(recurse)]
    return [pair for new in tensors for pair in zip(before.get(id(new), new).shape, new.shape, strict=True)]
