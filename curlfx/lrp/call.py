"""One call of the graph as a relevance rule sees it: the values that it read and gave, and ways to run it again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from curlfx.errors import ConfigError
from curlfx.graph import where
from curlfx.ops.call import named_arguments

Flow = Tensor | list[Tensor | None]
"""Relevance of a call's output: a tensor, or of several outputs a list in which None is no relevance."""
Parts = Mapping[str, Tensor | Sequence[Tensor | None] | None]
"""Relevance of a call's inputs, by argument name; of a list of tensors a list."""
RuleName = Literal["alpha-beta", "epsilon"]
Treatment = Literal["auto", "identity", "fold"]


@dataclass(frozen=True)
class Settings:
    """How sums of products distribute relevance.

    Attributes:
        rule: ``alpha-beta`` or ``epsilon``.
        alpha: Weight of what raises the output; ``alpha - beta`` is 1.
        beta: Weight of what lowers it, at least 0.
        epsilon: What ``epsilon`` adds to the size of a denominator, in units of the output.
        batch_norm: ``identity`` hands relevance through batch normalisation, ``fold`` merges it into the layer before;
            ``auto`` is ``fold`` for the epsilon rule, whose denominators must be what the relevance belongs to.
        reach: Not how much arrives is asked, but whether anything can: all inputs of a sum get 1.

    Raises: ConfigError.
    """

    rule: RuleName = "alpha-beta"
    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6
    batch_norm: Treatment = "auto"
    reach: bool = False

    def __post_init__(self) -> None:
        """Check the numbers against each other."""
        for key, kind in (("rule", RuleName), ("batch_norm", Treatment)):
            if getattr(self, key) not in get_args(kind):
                raise ConfigError(f"{key} = {getattr(self, key)}: want one of {', '.join(get_args(kind))}")
        if not (self.beta >= 0 and abs(self.alpha - self.beta - 1) < 1e-9):
            raise ConfigError(
                f"alpha = {self.alpha}, beta = {self.beta}: want beta >= 0 and alpha - beta = 1, which conserves "
                "relevance"
            )
        if not 0 < self.epsilon < float("inf"):
            raise ConfigError(f"epsilon = {self.epsilon}: want a number above 0")

    @property
    def folds(self) -> bool:
        """Whether batch normalisation is merged into the layer before it."""
        return self.batch_norm == "fold" or (self.batch_norm == "auto" and self.rule == "epsilon")


PAPER = Settings()
"""As in Gradual Channel Pruning while Training using Feature Relevance Scores (arXiv:2002.09958)."""


class Call:
    """A ``call_function`` node with the values of one run.

    Args:
        node: The call.
        values: Of all nodes before it and of itself.
        live: The nodes that carry relevance: floating-point tensors that depend on the images.
        settings: How to distribute.

    Attributes:
        clips: How many elements of the output cancelled to nearly nothing, see `curlfx.lrp.distribute.proportional`.
        idle: Relevance that no input gets: of sums of nothing but zeros, whose bias spoke, and of numbers filled in.
    """

    def __init__(
        self, node: Node, values: Mapping[Node, Any], live: Collection[Node], settings: Settings = PAPER
    ) -> None:
        self.node, self.settings = node, settings
        self.clips, self.idle = 0, 0.0
        self._values, self._live = values, live
        self._written = named_arguments(node)

    def __getitem__(self, name: str) -> Any:
        """The value of an argument, by its name in the op's schema. Raises: KeyError."""
        return map_arg(self._written[name], self._values.__getitem__)

    @property
    def arguments(self) -> Collection[str]:
        """Names of all arguments."""
        return self._written.keys()

    @property
    def output(self) -> Any:
        """The value of the call."""
        return self._values[self.node]

    def carries(self, name: str) -> bool:
        """Whether an argument is a tensor that depends on the images."""
        node = self._written.get(name)
        return isinstance(node, Node) and self.is_live(node)

    def is_live(self, node: Node | None) -> bool:
        """Whether a node carries relevance."""
        return node is not None and node in self._live

    @property
    def place(self) -> str:
        """How messages name the call: node, op, and line of the user's code."""
        return described(self.node)

    def node_of(self, name: str) -> Node:
        """The node that stands at an argument."""
        node = self._written[name]
        assert isinstance(node, Node)  # noqa: S101 - callers ask for tensors
        return node

    def nodes(self) -> dict[str, Node | list[Node | None]]:
        """The arguments that are tensors or lists of tensors, by name; None for what is no floating-point tensor."""
        found: dict[str, Node | list[Node | None]] = {}
        for name, value in self._written.items():
            if isinstance(value, Node) and self._is_floating(value):
                found[name] = value
            elif isinstance(value, list | tuple) and any(isinstance(each, Node) for each in value):
                found[name] = [each if isinstance(each, Node) and self._is_floating(each) else None for each in value]
        return found

    def operands(self) -> list[str]:
        """The single arguments that depend on the images, in order."""
        return [name for name in self._written if self.carries(name)]

    def run(self, /, **arguments: Any) -> Any:
        """The op on the values of this run, some arguments replaced."""
        given = {name: arguments[name] if name in arguments else self[name] for name in self._written}
        if isinstance(self.node.target, OpOverload):
            return self.node.target(**given)
        positional = [given.pop(str(index)) for index in range(len(self.node.args))]
        return self.node.target(*positional, **given)  # type: ignore[operator]

    def _is_floating(self, node: Node) -> bool:
        value = self._values.get(node)
        return isinstance(value, Tensor) and value.is_floating_point()


def described(node: Node) -> str:
    """A node, its op, and the line of the user's code that made it."""
    line = where(node)
    return f"node '{node.name}' ({node.target}{f', {line}' if line else ''})"


Rule = Callable[[Call, Any], Parts]
"""``rule(call, relevance) -> parts``: what the inputs of a call get of the relevance of its output, a `Flow`."""
