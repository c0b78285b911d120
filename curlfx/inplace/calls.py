"""Which calls of the graph each module of the user's model makes, before and after slimming."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from curlfx.graph import TracedModel


@dataclass(frozen=True)
class Call:
    """One call, in both graphs.

    Attributes:
        dense: In the graph of the model as it was.
        slim: The node of the same name in the narrow graph.
    """

    dense: Node
    slim: Node


@dataclass(frozen=True)
class Calls:
    """The calls of one module.

    Attributes:
        own: Made in the module's own ``forward``, or reading one of its parameters.
        within: Made in it or in a module below it, in order.
    """

    own: tuple[Call, ...] = ()
    within: tuple[Call, ...] = ()


def calls_of(model: nn.Module, dense: TracedModel, slim: TracedModel) -> dict[int, Calls]:
    """The calls of every module, by the module's ``id``; modules that take no part have no entry."""
    modules = dict(model.named_modules(remove_duplicate=False))
    after = {node.name: node for node in slim.graph.nodes}
    own: dict[int, list[Call]] = {}
    within: dict[int, list[Call]] = {}
    for node in dense.graph.nodes:
        if node.op != "call_function" or node.name not in after:
            continue
        call = Call(node, after[node.name])
        stack = [modules[name] for name in modules_around(node) if name in modules]
        readers = [
            modules.get(str(one.target).rpartition(".")[0]) for one in node.all_input_nodes if one.op == "get_attr"
        ]
        for module in dict.fromkeys([*stack[-1:], *(reader for reader in readers if reader is not None)]):
            own.setdefault(id(module), []).append(call)
        for module in dict.fromkeys(stack):
            within.setdefault(id(module), []).append(call)
    return {key: Calls(tuple(own.get(key, ())), tuple(within.get(key, ()))) for key in own.keys() | within.keys()}


def modules_around(node: Node) -> list[str]:
    """Names of the modules whose ``forward`` was running when a node was made, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(name).split("@")[0] for name, _ in stack.values()]  # "relu@1" is the second call of "relu"
