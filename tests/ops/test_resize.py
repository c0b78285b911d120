"""Literal arguments follow: what stands in the one call that changes, before and after."""

import pytest
import torch
from torch.nn import functional

from curlfx.graph import show
from tests.networks.net import IMAGE, TOKENS, Net, between, drawn, pointwise, prepared, tokens
from tests.oracles import Laboratory
from tests.properties.invariants import slim_equals_gated

KEPT = (0, 1, 2, 6)
END = 2**63 - 1
ORDER = torch.tensor([6, 7, 2, 0, 1, 3, 4, 5])


def pooled(y):
    return y.mean((2, 3), keepdim=True)


# A function of eight channels, of which `KEPT` stay; the arguments of its op behind the first, before and after.
CASES = {
    "view": (lambda y: y.view(2, 8, 16)[..., None], "[2, 8, 16]", "[2, 4, 16]"),
    "view as written": (lambda y: y.view(2, -1, 8, 2), "[2, -1, 8, 2]", "[2, -1, 8, 2]"),
    "reshape": (lambda y: y.mT.reshape(2, 8, 2, 8), "[2, 8, 2, 8]", "[2, 4, 2, 8]"),
    "expand": (lambda y: pooled(y).expand(2, 8, 4, 4), "[2, 8, 4, 4]", "[2, 4, 4, 4]"),
    "expand as written": (lambda y: pooled(y).expand(-1, -1, 4, 4), "[-1, -1, 4, 4]", "[-1, -1, 4, 4]"),
    "new_zeros": (lambda y: y + y.new_zeros(2, 8, 1, 1), "[2, 8, 1, 1], ", "[2, 4, 1, 1], "),
    "slice": (lambda y: y[:, 1:7], "1, 1, 7", "1, 1, 4"),
    "slice from the end": (lambda y: y[:, -7:-1], "1, -7, -1", "1, 1, 4"),
    "slice to the end": (lambda y: y[:, 2:], f"1, 2, {END}", f"1, 2, {END}"),
    "narrow": (lambda y: y.narrow(1, 1, 6), "1, 1, 6", "1, 1, 3"),
    "select": (lambda y: y * y.select(1, 6)[:, None], "1, 6", "1, 3"),
    "select from the end": (lambda y: y * y.select(1, -2)[:, None], "1, -2", "1, 3"),
    "split": (lambda y: torch.cat(y.split(5, 1), 1), "5, 1", "[3, 1], 1"),
    "split unevenly": (lambda y: torch.cat(y.split([1, 5, 2], 1), 1), "[1, 5, 2], 1", "[1, 2, 1], 1"),
    "chunk": (lambda y: torch.cat(y.chunk(2, 1), 1), "2, 1", "[3, 1], 1"),
    "pad": (lambda y: functional.pad(y, (1, 0, 0, 0, 1, 2)), "[1, 0, 0, 0, 1, 2]", "[1, 0, 0, 0, 1, 2]"),
    "index": (lambda y: y.flip(1)[:, :, [3, 1, 2, 0]], "[None, None, %lift", "[None, None, %lift"),
    "index_select": (lambda y: y.index_select(1, ORDER), "1, %lifted_tensor_0", "1, %curlfx_index_0"),
    "group_norm": (lambda y: functional.group_norm(y, 8), "8", "4"),
    "group_norm as written": (lambda y: functional.group_norm(y, 1), "1", "1"),
    "layer_norm": (lambda y: functional.layer_norm(y, (8,)), "[8]", "[4]"),
    "rms_norm": (lambda y: functional.rms_norm(y, (8,)), "[8]", "[4]"),
    "scaled_dot_product_attention": (
        lambda y: functional.scaled_dot_product_attention(y, y, y),
        "%linear, %linear",
        "%linear, %linear, scale=0.35355339059327373",
    ),
}
WIDTHS = {"slice": 6, "slice from the end": 6, "slice to the end": 6, "narrow": 6, "pad": 11}
OF_TOKENS = ("layer_norm", "rms_norm", "scaled_dot_product_attention")


def arguments(text, op):
    """What stands behind the first argument of the last call of ``op``; a chunk becomes a split."""
    calls = [line for line in text.splitlines() if f"= aten.{op}" in line] or [
        line for line in text.splitlines() if "= aten.split_with_sizes" in line
    ]
    return calls[-1].partition("(")[2].rpartition(") :")[0].partition(", ")[2]


@pytest.mark.parametrize("name", CASES)
def test_literals(name):
    function, before, after = CASES[name]
    op = name.partition(" ")[0]
    frame = tokens if op in OF_TOKENS else between
    net = frame(lambda m, y: function(y), outputs=WIDTHS.get(name, 8))
    laboratory = Laboratory.of(prepared(net), drawn(TOKENS if op in OF_TOKENS else IMAGE))
    assert arguments(laboratory.text, op).startswith(before)
    numbers = laboratory.coupling.parameter_labels("a.weight")[0].reshape(-1)[list(KEPT)]
    keep = {
        group.id: [position for position, channel in enumerate(group.channels) if channel in numbers]
        for group in laboratory.coupling.groups
    }
    assert arguments(show(laboratory.slim(keep)), op).startswith(after)


def test_new_positions_are_counted_among_the_kept():
    net = prepared(between(lambda m, y: y.index_select(1, m.order), order=ORDER))
    slim = Laboratory.of(net, drawn(IMAGE)).slim({"a.weight": KEPT})
    assert slim.tensors()["curlfx_index_0"].tolist() == [3, 2, 0, 1]
    assert slim.parameter("order").tolist() == ORDER.tolist()


@pytest.mark.parametrize(
    ("kept", "amounts"), [((0,), "[0, 0, 0, 0, 1, 0]"), ((1,), "[0, 0, 0, 0, 0, 1]"), ((1, 2), "[0, 0, 0, 0, 0, 2]")]
)
def test_padded_channels_are_counted(kept, amounts):
    """One channel before and two behind meet channels of ``b``: so many stay as ``b`` keeps there."""
    net = Net(
        lambda m, x: m.h(functional.pad(m.a(x), (0, 0, 0, 0, 1, 2)) + m.b(x)),
        a=pointwise(3, 8),
        b=pointwise(3, 11),
        h=pointwise(11, 2),
    )
    laboratory = Laboratory.of(prepared(net), drawn(IMAGE))
    assert arguments(laboratory.text, "pad") == "[0, 0, 0, 0, 1, 2]"
    assert arguments(show(laboratory.slim({"b.weight": kept})), "pad") == amounts
    slim_equals_gated(laboratory, {"b.weight": kept}, drawn(IMAGE))
