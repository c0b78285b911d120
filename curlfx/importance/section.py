"""Sections: parts of a graph that run by themselves, given the values that they read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

Values = dict[Node, Any]


class Section:
    """Some calls of a graph, in order.

    Args:
        nodes: The calls.
        alias: What stands in for a node wherever it is read.
        result: The node whose value is wanted.

    Attributes:
        nodes: The calls.
        inputs: Nodes that are read and are no call of this section, in graph order.
        result: The node whose value is wanted, itself no alias.
    """

    def __init__(self, nodes: Sequence[Node], alias: Mapping[Node, Node], result: Node) -> None:
        self._alias = alias
        self.nodes = tuple(nodes)
        self.result = self._real(result)
        own, last, read = set(self.nodes), {}, {self.result: None} if self.result not in self.nodes else {}
        for place, node in enumerate(self.nodes):
            for source in self.sources(node):
                last[source] = place
                if source not in own:
                    read[source] = None
        self.inputs = tuple(sorted(read))
        last.pop(self.result, None)
        self._dead: list[list[Node]] = [[] for _ in self.nodes]
        for source, place in last.items():
            if source in own:
                self._dead[place].append(source)

    def sources(self, node: Node) -> list[Node]:
        """What a call reads."""
        return [self._real(source) for source in node.all_input_nodes]

    def run(self, values: Values, *, every: Callable[[int], None] | None = None) -> Any:
        """The value of the result.

        Args:
            values: Those of the inputs; left as they are.
            every: Is called after each call with its place.
        """
        found = dict(values)
        for place, node in enumerate(self.nodes):
            found[node] = self.compute(node, found)
            for dead in self._dead[place]:
                del found[dead]
            if every is not None:
                every(place)
        return found[self.result]

    def compute(self, node: Node, values: Values) -> Any:
        """The value of one call."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: values[self._real(source)])
        return _TARGETS.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]

    def bytes_at_once(self) -> int:
        """The most memory that values of the example batch take together while the section runs."""
        live = most = 0
        for node, dead in zip(self.nodes, self._dead, strict=True):
            live += size_of(node)
            most = max(most, live)
            live -= sum(map(size_of, dead))
        return most

    def bytes_written(self) -> int:
        """The memory that all values of the example batch take."""
        return sum(map(size_of, self.nodes))

    def _real(self, node: Node) -> Node:
        while node in self._alias:
            node = self._alias[node]
        return node


class Forward:
    """One pass through the intact network that stops where it is asked to and keeps what is still needed.

    Args:
        section: The intact network.
        readers: Sections that read its values, in the order in which they will ask.
        values: Input and constants of the network.
    """

    def __init__(self, section: Section, readers: Sequence[Section], values: Values) -> None:
        self._section, self._values = section, dict(values)
        self._given = set(values)
        self._place = {node: place for place, node in enumerate(section.nodes)}
        end = 1 + max((self.ready(section, reader) for reader in readers), default=-1)
        self._users: dict[Node, int] = {}
        for sources in [*(section.sources(node) for node in section.nodes[:end]), *(each.inputs for each in readers)]:
            for source in set(sources):
                self._users[source] = self._users.get(source, 0) + 1
        self._next = 0

    @staticmethod
    def ready(section: Section, reader: Section) -> int:
        """Place of the last call of ``section`` that a reader needs the value of, -1 for none."""
        place = {node: number for number, node in enumerate(section.nodes)}
        return max((place.get(node, -1) for node in reader.inputs), default=-1)

    def values(self, reader: Section) -> Values:
        """What a reader reads."""
        wanted = max((self._place.get(node, -1) for node in reader.inputs), default=-1)
        while self._next <= wanted:
            node = self._section.nodes[self._next]
            value = self._section.compute(node, self._values)
            if self._users.get(node):
                self._values[node] = value
            self._next += 1
            self._release(self._section.sources(node))
        return {node: self._values[node] for node in reader.inputs}

    @property
    def held(self) -> set[Node]:
        """The calls whose values are kept now."""
        return self._values.keys() - self._given

    def done(self, reader: Section) -> None:
        """The reader needs nothing any more."""
        self._release(reader.inputs)

    def _release(self, sources: Iterable[Node]) -> None:
        for source in set(sources):
            self._users[source] -= 1
            if not self._users[source] and source not in self._given:
                del self._values[source]


def reachable(starts: Iterable[Node]) -> set[Node]:
    """The nodes, and all that is computed from them."""
    found, waiting = set(starts), list(starts)
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def needed(result: Node, alias: Mapping[Node, Node]) -> set[Node]:
    """All nodes that a value is computed from, itself included, aliases followed and left out."""
    found: set[Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        while node in alias:
            node = alias[node]
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def calls(nodes: Iterable[Node], among: Collection[Node]) -> list[Node]:
    """Those nodes that are calls and are ``among`` some, in the order of the graph."""
    return [node for node in nodes if node.op == "call_function" and node in among]


def size_of(node: Node) -> int:
    """Bytes of a node's value for the example batch; 0 for anything but a tensor."""
    value = node.meta.get("val")
    return int(value.numel()) * value.element_size() if isinstance(value, Tensor) else 0


def _size(tensor: Tensor, axis: int) -> int:
    return tensor.size(axis)


_TARGETS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.sym_size.int: _size,
}
"""What runs in place of an op: a view may be impossible in another memory format, and `vmap` knows no sizes."""
