"""Rules for ops of one's own: labels, literal arguments and multiply-adds of one op in one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from curlfx.ops.call import Emission, OpCall
from curlfx.ops.resize import Resizing, resize_for
from curlfx.ops.table import Rule, given

Resize = Callable[[Resizing], None]


@dataclass(frozen=True)
class OpRule:
    """All that curlfx needs to know of an op; it may stand wherever a label rule does.

    Attributes:
        labels: Label rule: ties what goes together, returns the labels of the output.
        resize: Rewrites literal arguments that count channels, when channels have gone; None: there are none.
        contractions: What the op multiplies and adds, as in `curlfx.cost.contraction.CONTRACTIONS`; None: nothing.
    """

    labels: Rule
    resize: Resize | None = None
    contractions: Callable[[Node], Sequence[Any]] | None = None

    def __call__(self, call: OpCall) -> Emission:
        """Labels of the op's output, as every label rule gives them."""
        return self.labels(call)


def resize_by(target: Any, rules: Mapping[Any, Rule]) -> Resize | None:
    """The rewrite of an op's literals: that of the user's rule where there is one, else that of the built-in table."""
    found = given(target, rules)
    return found.resize if isinstance(found, OpRule) else resize_for(target)


def contractions_by(target: Any, rules: Mapping[Any, Rule]) -> Callable[[Node], Sequence[Any]] | None:
    """What the user's rule says that an op multiplies and adds; None where it says nothing."""
    found = given(target, rules)
    return found.contractions if isinstance(found, OpRule) else None
