"""One call in the graph as an op rule sees it: arguments by name, concrete shapes, label arrays, ways to speak."""

from __future__ import annotations

import operator
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.labels.arrays import Arrays, support
from curlfx.labels.store import LabelStore, Tie

Emission = Arrays | list[Arrays]
"""Label arrays of a node's output: a tuple for one tensor, a list of tuples for several."""

Shape = tuple[int, ...]


class Fixed(Protocol):
    """What is known of nodes that no input of the network reaches."""

    def __call__(self, node: Node) -> Any:
        """The node's value; None where an input reaches it."""

    def __contains__(self, node: Node) -> bool:
        """Whether no input reaches the node."""


class OpCall:
    """A ``call_function`` node together with the labels that arrive at it.

    Args:
        node: The call; every tensor argument has ``meta["val"]``.
        emissions: Labels of the nodes before it.
        store: Where ties, freezes and balances are recorded.
        constant: Values of nodes that depend on no input of the network.
    """

    def __init__(
        self,
        node: Node,
        emissions: MutableMapping[Node, Emission],
        store: LabelStore,
        constant: Fixed,
    ) -> None:
        self.node = node
        self.store = store
        self.constant = constant
        self._emissions = emissions
        self._named = named_arguments(node)

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument of that name in the op's schema, as written (a Node where it is a tensor or a size)."""
        return self._named.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the argument is given and not None."""
        return self._named.get(name) is not None

    def number(self, name: str, default: Any = None) -> Any:
        """The argument with sizes computed in the graph replaced by their value at the example inputs."""
        return concrete(self._named.get(name, default))

    def axis(self, name: str, of: str | Node, default: int = 0) -> int:
        """An axis argument, made non-negative for the tensor ``of``."""
        return int(self.number(name, default)) % max(len(self.shape(of)), 1)

    def tensors(self) -> list[Node]:
        """All tensor-valued arguments, in order, lists flattened."""
        return [node for node in self.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]

    def shape(self, of: str | Node) -> Shape:
        """Shape of a tensor argument at the example inputs."""
        value = (self.arg(of) if isinstance(of, str) else of).meta["val"]
        return tuple(int(size) for size in value.shape)

    @property
    def fixed(self) -> bool:
        """Whether no input of the network reaches this call: it computes with weights alone."""
        return self.node in self.constant

    @property
    def out_shape(self) -> Shape:
        """Shape of the (first) output."""
        value = self.node.meta["val"]
        first = value[0] if isinstance(value, (tuple, list)) else value
        return tuple(int(size) for size in first.shape)

    def arrays(self, of: str | Node) -> Arrays:
        """Label arrays of a tensor argument; () for inputs of the network and numbers."""
        node = self.arg(of) if isinstance(of, str) else of
        found = self._emissions.get(node, ()) if isinstance(node, Node) else ()
        return found if isinstance(found, tuple) else ()

    def emission(self, of: Node) -> Emission:
        """Whatever was emitted for a node, lists of outputs included."""
        return self._emissions.get(of, ())

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Two arrays name the same channels (broadcast against each other)."""
        self.store.tie(a, b, self.node.name)

    def freeze(self, arrays: Tensor | Sequence[Tensor], reason: str) -> None:
        """These labels must stay; ``reason`` ends up in every message about them."""
        for array in (arrays,) if isinstance(arrays, Tensor) else arrays:
            self.store.freeze(array, self.node.name, reason)

    def balance(self, array: Tensor, around: Tensor | None) -> None:
        """Equal kept counts along the last varying axis, for every position of the others that ``around`` leaves."""
        self.store.balance(array, around, self.node.name)

    def blocks(self, array: Tensor) -> list[Tensor]:
        """As :meth:`balance`, and labels for the blocks themselves, outermost axes last."""
        return self.store.blocks(array, self.node.name)

    def nest(self, child: Tensor, parent: Tensor) -> None:
        """The labels of ``child`` go with those of ``parent``, broadcast to it."""
        self.store.nest(child, parent, self.node.name)

    def project(self, array: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Make the labels vary along ``axes`` only (the same positions stay everywhere else)."""
        return self.store.project(array, axes, self.node.name)

    def read(self, of: str | Node, axes: Sequence[int] | None = None, *, parameters: bool = False) -> None:
        """Record that the argument is summed over ``axes`` here, or over all of its labels: gates go in front of it.

        A parameter needs none, since what it is multiplied with has one; ``parameters`` says that this one does.
        """
        node = self.arg(of) if isinstance(of, str) else of
        if isinstance(node, Node) and (parameters or node.op != "get_attr") and self.arrays(node):
            self.store.reads.append((self.node.name, node.name, None if axes is None else tuple(axes)))

    def relabel(self, of: str, axis: int, matrix: Tensor) -> None:
        """Replace a parameter's labels along ``axis`` by an array that varies along other axes too (grouped weights).

        A parameter that another call read before has the two arrays tied.
        """
        node = self.arg(of)
        kept: list[Tensor] = []
        known = False
        for array in self.arrays(node):
            if support(array) == support(matrix):
                self.tie(array, matrix)
                known = True
            if support(array) == (axis,):
                if any(user < self.node for user in node.users):
                    self.tie(array, matrix)
                self.store.retired.append(array.reshape(-1))
                old, new = torch.broadcast_tensors(array, matrix)
                self.store.attached.append(Tie(old.reshape(-1), new.reshape(-1), self.node.name))
            else:
                kept.append(array)
        self._emissions[node] = tuple(kept) if known else (*kept, matrix)
        self.store.relabelled[str(node.target)] = self._emissions[node]

    def produce(self, arrays: Sequence[Tensor]) -> None:
        """These labels name channels that this layer computes."""
        self.store.producers.extend(array.reshape(-1) for array in arrays)

    def keep_only(self, arrays: Arrays, axes: Sequence[int], reason: str) -> Arrays:
        """The arrays as they vary along ``axes`` only.

        Labels whose innermost axis is another one are frozen with ``reason``; along outer axes (blocks) the same
        positions stay.
        """
        allowed = set(axes)
        result = []
        for array in arrays:
            varying = support(array)
            if varying[-1] not in allowed:
                self.freeze(array, reason)
            else:
                result.append(self.project(array, tuple(axis for axis in varying if axis in allowed)))
        return tuple(result)


def concrete(value: Any) -> Any:
    """Replace nodes by the plain number they had at the example inputs; containers are walked, tensors stay nodes."""
    if isinstance(value, Node):
        found = value.meta.get("val")
        return found if isinstance(found, (int, float, bool)) else value
    if isinstance(value, (list, tuple)):
        return [concrete(item) for item in value]
    return value


def named_arguments(node: Node) -> dict[str, Any]:
    """Arguments of a call by schema name, defaults filled in; plain functions get positions as names."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {str(index): value for index, value in enumerate(node.args)} | dict(node.kwargs)
    named: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(node.args):
            named[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def is_getitem(node: Node) -> bool:
    """Whether the node picks one output of a call with several."""
    return node.op == "call_function" and node.target is operator.getitem
