"""Weights that a network computes from its parameters, folded into plain parameters.

Weight standardisation, weight and spectral norm compute a layer's weight anew at each call from parameters alone. Such
a computation runs over channels: with some of them gone, its result would change for those that stay. So what it gives
is computed once, and takes its place as one trainable parameter, at the layer's own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from curlfx.graph.clean import sweep
from curlfx.graph.constants import Constants, mutates
from curlfx.graph.provenance import module_name
from curlfx.graph.shapes import propagate
from curlfx.graph.traced import TracedModel

_LAYERS = frozenset({"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))})
_MIXING = frozenset(
    {
        *("mm", "mv", "bmm", "matmul", "addmm", "addmv", "addbmm", "baddbmm", "dot", "vdot", "inner", "einsum"),
        *("tensordot", "chain_matmul", "matrix_exp", "matrix_power", "inverse", "pinverse", "cov", "corrcoef"),
        *("softmax", "_softmax", "log_softmax", "cumsum", "cumprod", "var", "std", "norm_except_dim", "_weight_norm"),
        *("_weight_norm_interface", "instance_norm", "group_norm"),
    }
)
_PARAMETRIZED = re.compile(r"(?P<owner>(?:.+\.)?)parametrizations\.(?P<key>[^.]+)\.")
_LISTED = 8


@dataclass(frozen=True)
class _Origin:
    """What a value that no input reaches is made of.

    Attributes:
        parameters: Names of the trainable tensors in it, in order of reading.
        mixing: Names of the ops that run over channels of these.
        layered: Names of the layers that ran on it: it is what they compute from a table, not a weight.
        spoilt: Whether it may differ from call to call: written in place, or random.
    """

    parameters: tuple[str, ...] = ()
    mixing: frozenset[str] = frozenset()
    layered: frozenset[str] = frozenset()
    spoilt: bool = False


@dataclass(frozen=True)
class _Reading:
    """A computed weight where it is read, and the values before it that hold the same elements."""

    chain: tuple[Node, ...]
    reader: Node
    role: str


@dataclass
class _Fold:
    """A value to be replaced, the readings that lead to it, and the parameter that replaces it."""

    point: Node
    readings: list[_Reading]
    value: Tensor
    trains: bool
    node: Node | None = None


def fold_weights(traced: TracedModel) -> bool:
    """Replace every weight, bias or scale that is computed from parameters by one parameter with its value.

    Only where the computation sums, averages or multiplies matrices; gains, permutations and looked-up tables stay.
    A note says which parameters these are. Returns whether there were any; shapes are propagated then.
    """
    origins = _origins(traced)
    alike = _alike(traced, origins)
    constants = Constants(traced)
    folds = []
    for point, readings in _points(_readings(origins, alike)).items():
        trains = any(traced.parameter(name).requires_grad for name in origins[point].parameters)
        folds.append(
            _Fold(point, readings, constants(point).detach().clone(memory_format=torch.contiguous_format), trains)
        )
    if not folds:
        return False
    before = {id(traced.parameter(str(leaf.target))) for fold in folds for leaf in _leaves(fold.point)}
    for fold in folds:
        with traced.graph.inserting_before(min(_leaves(fold.point))):
            fold.node = traced.graph.create_node("get_attr", "folded")
        for node in [node for node in origins if alike[node] is fold.point]:
            node.replace_all_uses_with(fold.node)
    sweep(traced.graph)
    _name(traced, [fold for fold in folds if fold.node is not None and fold.node.users], origins)
    _forget(traced, before - _live(traced))
    traced.recompile()
    propagate(traced)
    traced.notes = (*traced.notes, _note(folds, origins))
    return True


def _origins(traced: TracedModel) -> dict[Node, _Origin]:
    """Of every value that neither an input nor its size reaches; in the order of the graph."""
    origins: dict[Node, _Origin] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            origins[node] = _leaf(traced, str(node.target))
        elif node.op == "call_function" and all(source in origins for source in node.all_input_nodes):
            origins[node] = _made(node, origins)
    written = [node for call in traced.graph.nodes if mutates(call) for node in call.all_input_nodes]
    for node in _before(node for node in written if node in origins):
        origins[node] = replace(origins[node], spoilt=True)
    for node, origin in origins.items():
        if any(origins[source].spoilt for source in node.all_input_nodes):
            origins[node] = replace(origin, spoilt=True)
    return origins


def _leaf(traced: TracedModel, name: str) -> _Origin:
    try:
        tensor = traced.parameter(name)
    except KeyError:  # a constant that is no tensor
        return _Origin(spoilt=True)
    return _Origin((name,) if isinstance(tensor, nn.Parameter) else ())


def _made(node: Node, origins: dict[Node, _Origin]) -> _Origin:
    sources = [origins[source] for source in node.all_input_nodes]
    parameters = tuple(dict.fromkeys(name for source in sources for name in source.parameters))
    mixing = {_name_of(node)} if parameters and _mixes(node) else set()
    layered = {_name_of(node)} & _LAYERS
    return _Origin(
        parameters,
        frozenset(mixing).union(*(source.mixing for source in sources)),
        frozenset(layered).union(*(source.layered for source in sources)),
        spoilt=any(source.spoilt for source in sources) or mutates(node) or _is_random(node),
    )


def _name_of(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def _mixes(node: Node) -> bool:
    """Whether an op's result hangs on elements at other positions than its own: what it runs over cannot be removed."""
    name = _name_of(node)
    if name == "batch_norm":
        return bool(_argument(node, "training"))
    return name in _MIXING or name.startswith("linalg_") or torch.Tag.reduction in getattr(node.target, "tags", ())


def _is_random(node: Node) -> bool:
    running = _name_of(node) == "batch_norm" and _argument(node, "training") and _argument(node, "running_mean")
    return bool(running) or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _argument(node: Node, name: str) -> Any:
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            default = argument.default_value if argument.has_default_value() else None
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
    return None


def _before(nodes: Iterable[Node]) -> set[Node]:
    """The nodes and all that they are computed from."""
    found: set[Node] = set()
    open_ = list(nodes)
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_.extend(node.all_input_nodes)
    return found


def _alike(traced: TracedModel, origins: dict[Node, _Origin]) -> dict[Node, Node]:
    """For every value the first that is computed alike: a module called twice computes its weight twice."""
    first: dict[Any, Node] = {}
    alike: dict[Node, Node] = {}

    def key(item: Any) -> Any:
        if isinstance(item, Node):
            return alike[item]
        if isinstance(item, (list, tuple)):
            return tuple(key(element) for element in item)
        return repr(item)

    for node, origin in origins.items():
        if node.op == "get_attr":
            mark: Any = node.target if origin.spoilt else id(traced.parameter(str(node.target)))
        else:
            mark = node.target, key(node.args), key(tuple(node.kwargs.items()))
        alike[node] = node if origin.spoilt else first.setdefault(mark, node)
    return alike


def _readings(origins: dict[Node, _Origin], alike: dict[Node, Node]) -> list[_Reading]:
    """Where layers read what is to be folded, and where values that inputs reach meet it."""
    found = []
    for reader in next(iter(origins)).graph.nodes if origins else ():
        if reader.op != "call_function":
            continue
        for source in reader.all_input_nodes:
            role = _role(reader, source)
            if source in origins and (reader not in origins or role) and _wanted(source, origins[source], role):
                found.append(_Reading(_chain(alike[source], origins, alike), reader, role))
    return found


def _role(reader: Node, source: Node) -> str:
    """``weight`` or ``bias`` where a layer reads it as that."""
    if _name_of(reader) not in _LAYERS:
        return ""
    return next((name for name in ("weight", "bias") if _argument(reader, name) is source), "")


def _wanted(source: Node, origin: _Origin, role: str) -> bool:
    """What layers compute from a table of positions is theirs to compute, unless it is a layer's weight itself."""
    value = source.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 2:
        return False
    mixed = origin.mixing or origin.layered if role else origin.mixing and not origin.layered
    return bool(mixed and origin.parameters and not origin.spoilt)


def _chain(node: Node, origins: dict[Node, _Origin], alike: dict[Node, Node]) -> tuple[Node, ...]:
    """A value and those before it that it only reshapes, scales or takes a part of."""
    chain = [node]
    while len(sources := chain[-1].all_input_nodes) == 1 and not _mixes(chain[-1]):
        before = sources[0]
        if not origins[before].mixing or (_mixes(before) and not isinstance(before.meta.get("val"), Tensor)):
            break
        chain.append(alike[sources[0]])
    return tuple(chain)


def _points(readings: Sequence[_Reading]) -> dict[Node, list[_Reading]]:
    """Which values to replace: a weight that is read once as it is read, a shared one as far as it is shared."""
    families: dict[Node, list[_Reading]] = {}
    for reading in readings:
        families.setdefault(reading.chain[-1], []).append(reading)
    points: dict[Node, list[_Reading]] = {}
    for family in families.values():
        first = family[0].chain
        shared = [node for node in first if all(node in reading.chain for reading in family)]
        tensors = [node for node in shared if isinstance(node.meta.get("val"), Tensor)]
        points[tensors[0] if any(reading.role for reading in family) else tensors[-1]] = family
    return points


def _leaves(point: Node) -> list[Node]:
    return [node for node in _before([point]) if node.op == "get_attr"]


def _name(traced: TracedModel, folds: Sequence[_Fold], origins: dict[Node, _Origin]) -> None:
    """Put each value at a name: the layer's own if it is free, or that of a parameter in it that is read no more."""
    live = _live(traced)
    for fold in folds:
        name = _free_name(traced, fold, origins[fold.point].parameters, live)
        if _is_tensor(traced, name):
            traced.set_parameter(name, fold.value)
            traced.parameter(name).requires_grad_(fold.trains)
        else:
            traced.add_parameter(name, fold.value, requires_grad=fold.trains)
        live.add(id(traced.parameter(name)))
        fold.node.target = name  # type: ignore[union-attr]


def _live(traced: TracedModel) -> set[int]:
    """Identities of the tensors that the graph reads."""
    names = {str(node.target) for node in traced.graph.find_nodes(op="get_attr")}
    return {id(traced.parameter(name)) for name in names if _is_tensor(traced, name)}


def _free_name(traced: TracedModel, fold: _Fold, parameters: Sequence[str], live: set[int]) -> str:
    unread = [name for name in parameters if _is_tensor(traced, name) and id(traced.parameter(name)) not in live]
    owned = [found for name in parameters if (found := _PARAMETRIZED.match(name))]
    names = [f"{found['owner']}{found['key']}" for found in owned[:1]]
    reading, own = fold.readings[0], ""
    if reading.role and reading.chain[0] is fold.point:
        own = f"{module_name(reading.reader)}.{reading.role}".removeprefix(".")
        if own in unread or all(
            name.startswith(f"{own}_") for name in parameters
        ):  # torch.nn.utils: weight_g, weight_v
            names.append(own)
    names += [name for name in unread if traced.parameter(name).shape == fold.value.shape]
    names += [own] if own else []
    names += [f"{parameters[0]}_folded{number}" for number in ("", *range(2, len(parameters) + len(live) + 3))]
    return next(name for name in names if name in unread or _is_vacant(traced, name))


def _is_tensor(traced: TracedModel, name: str) -> bool:
    try:
        traced.parameter(name)
    except KeyError:
        return False
    return True


def _is_vacant(traced: TracedModel, name: str) -> bool:
    path, _, key = name.rpartition(".")
    try:
        owner = traced.module.get_submodule(path)
    except AttributeError:
        return True
    return not hasattr(owner, key) or (key in owner._parameters and owner._parameters[key] is None)


def _forget(traced: TracedModel, tensors: set[int]) -> None:
    """Take away tensors under all their names."""
    for module in traced.module.modules():
        for slots in (module._parameters, module._buffers):
            for key in [key for key, held in slots.items() if id(held) in tensors]:
                delattr(module, key)


def _note(folds: Sequence[_Fold], origins: dict[Node, _Origin]) -> str:
    names = list(dict.fromkeys(str(fold.node.target) for fold in folds if fold.node is not None and fold.node.users))
    ops = sorted({op for fold in folds for op in origins[fold.point].mixing | origins[fold.point].layered})
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (
        f"weights that are computed from other parameters ({', '.join(ops)}) are parameters of their own now, with the "
        f"values they have: {', '.join(names[:_LISTED])}{more}"
    )
