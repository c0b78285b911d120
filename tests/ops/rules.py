"""How a label rule is tested: what comes out of it on a tiny network, and that slimming by it is right."""

from torch import nn

from benchmarks.trial import random_keep
from tests.coupling.summary import lines
from tests.networks.net import IMAGE, TOKENS, drawn, prepared
from tests.oracles import Laboratory
from tests.properties.invariants import slim_equals_gated

PASSES = ["8: a.weight[0] h.weight[1]"]
"""`between` and `tokens` when their function lets channels through one by one."""


def passes(width: int) -> list[str]:
    """As `PASSES`, for another number of coupled channels."""
    return [f"{width}: a.weight[0] h.weight[1]"]


def frozen(reason: str, width: int = 8) -> list[str]:
    """`between` and `tokens` when their function pins all channels."""
    return [f"a.weight[0] stays, {width}: {reason}"]


def check(net: nn.Module, want: list[str], *shapes: tuple[int, ...]) -> Laboratory:
    """The groups and frozen layers are those wanted, and half of the channels can go.

    Without shapes the network gets an image, or tokens where its first layer ``a`` is linear.
    """
    first = getattr(net, "a", None)
    inputs = drawn(*(shapes or (TOKENS if isinstance(first, nn.Linear) else IMAGE,)))
    laboratory = Laboratory.of(prepared(net), inputs)
    found = lines(laboratory.coupling)
    assert found == want, f"found {found}, want {want}"
    slim_equals_gated(laboratory, random_keep(laboratory.coupling.groups), inputs)
    return laboratory
