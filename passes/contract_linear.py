"""Contract linear: one compact layer again in place of three factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.fx import Node

from curlfx.errors import InvariantError
from curlfx.graph.modes import argument_of, set_argument
from curlfx.graph.traced import TracedModel
from curlfx.passes.agreement import insist
from curlfx.passes.base import Pass
from curlfx.passes.expand_linear import Expanded
from curlfx.passes.factors import SUFFIXES, Factors, compose, factor_names
from curlfx.passes.linear_layers import LAYERS

_BIAS = 2


@dataclass(frozen=True)
class ContractLinear(Pass):
    """Undo `ExpandLinear`: every weight is the product of its factors, computed in float64 and rounded once.

    The graph, the names of parameters and their shapes are again those from before the expansion.

    Source: Qian et al., arXiv:2204.11444.
    """

    name: ClassVar[str] = "contract-linear"

    def rewrite(self, traced: TracedModel) -> bool:
        """Multiply the factors. Returns whether there were any."""
        expanded = [node for node in traced.graph.find_nodes(op="get_attr") if "expanded" in node.meta]
        for node in expanded:
            _contract(traced, node, node.meta.pop("expanded"))
        return bool(expanded)

    def ensures(self, before: TracedModel, after: TracedModel) -> None:
        """Both compute the same on the example inputs. Raises: VerificationError, as for weights that are NaN."""
        insist(before, after, self.name)


def blocks(traced: TracedModel) -> dict[Factors[str], Expanded]:
    """Names of the factors of every weight that `ExpandLinear` replaced."""
    return {
        _names(node): node.meta["expanded"]
        for node in traced.graph.find_nodes(op="get_attr")
        if "expanded" in node.meta
    }


def product(factors: Factors[Tensor], expanded: Expanded) -> Tensor:
    """The weight that factors stand for, in float64."""
    doubled = Factors(*(factor.detach().double() for factor in factors))
    return compose(*doubled, expanded.layout.kind, expanded.layout.groups)


def _names(middle: Node) -> Factors[str]:
    return factor_names(str(middle.target).removesuffix(SUFFIXES[1]))


def _contract(traced: TracedModel, node: Node, expanded: Expanded) -> None:
    names = _names(node)
    factors = Factors(*(traced.parameter(name) for name in names))
    weight = product(factors, expanded).to(factors.m.dtype).contiguous()
    restored = nn.Parameter(weight, any(factor.requires_grad for factor in factors))
    for name in expanded.names:
        path, _, key = name.rpartition(".")
        traced.module.get_submodule(path).register_parameter(key, restored)
    for user in list(node.users):
        if user.target is compose:
            user.replace_all_uses_with(node)
            traced.graph.erase_node(user)
        else:
            _run_one(user, node)
    node.target = expanded.names[0]
    for name in names:
        traced.remove_parameter(name)


def _run_one(middle: Node, weight: Node) -> None:
    """Let the layer of B do what three layers did."""
    last, *others = middle.users
    at = LAYERS[middle.target].input
    first = argument_of(middle, at)
    if others or not isinstance(first, Node):
        raise InvariantError(f"node '{middle.name}' is no longer the second of three layers in a row")
    source = argument_of(first, at)
    if LAYERS[middle.target].kind in ("linear", "product"):
        operands = LAYERS[last.target]
        set_argument(last, operands.input, source)
        set_argument(last, operands.weight, weight)
        return
    bias = argument_of(last, _BIAS)
    last.target = middle.target
    last.args = (source, weight, *middle.args[2:])
    last.kwargs = dict(middle.kwargs)
    if bias is not None:
        set_argument(last, _BIAS, bias)
