"""Put the tensors of the narrow graph into the user's module, and let its layers' attributes follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize

from curlfx.graph import TracedModel
from curlfx.inplace.attributes import layer_widths
from curlfx.inplace.calls import Calls, calls_of
from curlfx.inplace.fault import Fault
from curlfx.inplace.journal import Journal
from curlfx.inplace.sizes import other_widths

Gather = Callable[[str, Tensor], Tensor]
_OWN_SLOTS = frozenset({"_parameters", "_buffers", "_modules"})


def narrow(model: nn.Module, dense: TracedModel, slim: TracedModel, gather: Gather, journal: Journal) -> Fault | None:
    """Replace what is narrower in the slim graph, by name; every change goes through the journal.

    Tensors that stay as they are keep their objects. A tensor that is known under several names is replaced under all
    of them. Gradients are dropped.

    Args:
        gather: Picks what stays of a tensor of some name. It serves where the graph has another value than the model
            under that name: a weight that ``forward`` standardises is in the graph as it comes out of that.

    Returns: What cannot be replaced, or None; the caller then undoes the journal.
    """
    calls = calls_of(model, dense, slim)
    layers = [(module, calls.get(id(module), Calls())) for module in model.modules()]
    said = [layer_widths(module, [call.dense for call in own.own]) for module, own in layers]
    owners = dict(model.named_modules(remove_duplicate=False))
    new: dict[int, tuple[Tensor, Tensor]] = {}
    for name, value in {**_renumbered(dense, slim), **_narrower(dense, slim)}.items():
        try:
            pairs = _replacements(owners, name, dense.parameter(name), value, gather)
        except _Irreplaceable as fault:
            return Fault(str(fault), name.rpartition(".")[0])
        new.update({id(old): (old, _like(old, after)) for old, after in pairs})
    replacement = {key: after for key, (_, after) in new.items()}
    for module in model.modules():
        _replace(module, replacement, journal)
    before = {id(after): old for old, after in new.values()}
    for (module, own), intact in zip(layers, said, strict=True):
        _follow(module, own, intact, before, journal)
    return None


class _Irreplaceable(Exception):  # noqa: N818 - a way out of a loop, not an error
    """A tensor that cannot be replaced by a narrower one."""


def _replacements(
    owners: Mapping[str, nn.Module], name: str, dense: Tensor, value: Tensor, gather: Gather
) -> list[tuple[Tensor, Tensor]]:
    """Tensors of the model and what takes their place, for one tensor of the graph. Raises: _Irreplaceable."""
    path, _, key = name.rpartition(".")
    owner = owners.get(path)
    if owner is not None and parametrize.is_parametrized(owner, key):
        return _originals(owner.parametrizations[key], name, value)  # type: ignore[index,arg-type]
    old = None if owner is None else _tensor(owner, key)
    if old is None:
        if isinstance(dense, nn.Parameter):
            raise _Irreplaceable(f"'{name}' is computed in the model, not held by it")
        return []  # a constant that no attribute holds; whether it matters, the comparison of the graphs shows
    if type(old) not in (Tensor, nn.Parameter) or isinstance(owner, torch.jit.ScriptModule):
        raise _Irreplaceable(
            f"'{name}' is a {type(old).__name__} of a {type(owner).__name__}, which cannot be replaced"
        )
    same = old.shape == dense.shape and torch.equal(old, dense)
    return [(old, value if same or old.shape != dense.shape else gather(name, old.detach()))]


def _originals(computed: nn.Module, name: str, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a parametrization computes a tensor from, now and so that it gives a narrower one."""
    with torch.no_grad():
        found: Any = value.detach().clone()
        for step in reversed(list(computed.children())):
            try:
                found = step.right_inverse(found)  # type: ignore[operator]
            except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
                raise _Irreplaceable(f"the parametrization of '{name}' cannot be inverted: {error}") from error
    if isinstance(found, Tensor):
        return [(computed.original, found)]  # type: ignore[list-item]
    return [(getattr(computed, f"original{position}"), each) for position, each in enumerate(found)]


def _narrower(dense: TracedModel, slim: TracedModel) -> dict[str, Tensor]:
    before = dense.tensors()
    return {name: new for name, new in slim.tensors().items() if name in before and new is not before[name]}


def _renumbered(dense: TracedModel, slim: TracedModel) -> dict[str, Tensor]:
    """Index vectors that the slim graph reads another vector in place of, by the name of the one they replace."""
    after = {node.name: node for node in slim.graph.nodes}
    found: dict[str, set[str]] = {}
    for vector in dense.graph.find_nodes(op="get_attr"):
        for user in vector.users:
            for old, new in zip(_leaves(user), _leaves(after.get(user.name)), strict=False):
                if old is vector and isinstance(new, Node) and new.op == "get_attr":
                    found.setdefault(str(vector.target), set()).add(str(new.target))
    return {old: slim.parameter(new.pop()) for old, new in found.items() if len(new) == 1 and new != {old}}


def _leaves(node: Node | None) -> list[Any]:
    arguments = [] if node is None else [*node.args, *node.kwargs.values()]
    return [leaf for one in arguments for leaf in (one if isinstance(one, (list, tuple)) else [one])]


def _tensor(owner: nn.Module, key: str) -> Tensor | None:
    """The parameter, buffer or plain attribute of a name."""
    for slots in (owner._parameters, owner._buffers, vars(owner)):
        if isinstance(slots.get(key), Tensor):
            return slots[key]
    return None


def _like(old: Tensor, value: Tensor) -> Tensor:
    """The value as the old tensor was: a parameter or not, with its marks and its memory format."""
    value = value.detach()
    for layout, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if old.ndim == ndim and old.is_contiguous(memory_format=layout) and not old.is_contiguous():
            value = value.contiguous(memory_format=layout)
    if not isinstance(old, nn.Parameter):
        return value.requires_grad_(old.requires_grad)
    new = nn.Parameter(value, old.requires_grad)
    vars(new).update(vars(old))  # marks of the user's, such as "no weight decay"
    return new


def _replace(module: nn.Module, new: dict[int, Tensor], journal: Journal) -> None:
    for slots in (module._parameters, module._buffers):
        for key, held in slots.items():
            if id(held) in new:
                journal.put(slots, key, new[id(held)])
    for key, value in list(vars(module).items()):
        if key not in _OWN_SLOTS:
            held = _substituted(value, new, journal, set())
            if held is not value:
                journal.put(vars(module), key, held)


def _substituted(value: Any, new: dict[int, Tensor], journal: Journal, seen: set[int]) -> Any:
    """A plain attribute with the narrow tensors in it; lists and dictionaries are changed where they are."""
    if id(value) in new and isinstance(value, Tensor):
        return new[id(value)]
    if id(value) in seen:
        return value
    if type(value) is tuple:
        changed = tuple(_substituted(item, new, journal, seen) for item in value)
        return changed if any(a is not b for a, b in zip(changed, value, strict=True)) else value
    if type(value) in (list, dict):
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            held = _substituted(item, new, journal, seen)
            if held is not item:
                journal.put(value, key, held)
    return value


def _follow(
    module: nn.Module, calls: Calls, intact: dict[str, Any], before: dict[int, Tensor], journal: Journal
) -> None:
    """Set the attributes that no longer say how wide the module is."""
    slots = vars(module)
    told = layer_widths(module, [call.slim for call in calls.own])
    changes = {name: value for name, value in other_widths(module, calls, before).items() if name not in intact}
    for name, value in {**changes, **told}.items():
        if name in slots and (name in changes or slots[name] == intact.get(name)) and slots[name] != value:
            journal.put(slots, name, value)
