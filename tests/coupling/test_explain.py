"""What one site is to the coupling: its groups, and why channels of it stay."""

import re
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from curlfx.coupling import Coupling, couple, explain, places
from curlfx.errors import KeepError
from curlfx.graph import trace
from tests.networks.fixtures import FIXTURES


@cache
def coupled(name: str) -> Coupling:
    case = FIXTURES[name]
    return couple(trace(case.build(), case.inputs()))


class Residual(nn.Module):
    """A stem to which two layers are added, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.inner, self.head = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.a(x)
        x = x + self.b(x)
        return self.head(self.inner(x))


@cache
def pinned(*frozen: str) -> Coupling:
    return couple(trace(Residual().eval(), (torch.randn(2, 3, 4, 4),)), frozen=frozen)


def test_the_way_to_what_pins_a_layer():
    """The second layer is added to the stem, and so is the first, which is frozen."""
    (found,) = explain(pinned("a"), "b.weight[0]")
    assert found.place.groups == {}
    (pin,) = found.pins
    assert (pin.width, pin.reason, pin.node, pin.others) == (6, "frozen by the user (a)", "a_weight", ())
    assert [(step.a, step.b, step.node) for step in pin.path] == [
        ("b.weight[0]", "stem.weight[0]", "add_1"),
        ("stem.weight[0]", "a.weight[0]", "add"),
    ]
    assert all(re.fullmatch(r"coupling/test_explain\.py:\d+", step.where) for step in pin.path)


def test_every_axis_along_which_channels_run():
    made, read = explain(pinned(), "head")
    assert (made.place.site, made.place.role, made.place.width) == ("head.weight[0]", "makes", 2)
    assert [(pin.reason, pin.path) for pin in made.pins] == [("an output of the network", ())]
    assert (read.place.site, read.place.role, read.place.groups) == ("head.weight[1]", "reads", {"inner.weight": 8})
    assert read.pins == ()


def test_all_reasons_are_named():
    (found,) = explain(pinned("a", "b"), "stem.weight[0]")
    (pin,) = found.pins
    assert pin.reason == "frozen by the user (a)"
    assert pin.others == ("frozen by the user (b) (b_weight)",)


@pytest.mark.slow
def test_data_that_no_layer_computes():
    (found,) = explain(coupled("option_a"), "pad (channels made here)")
    assert found.place.role == "has"
    assert found.place.width == sum(found.place.groups.values()) + found.place.stays == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic_downsample", "inception", "grouped_conv", "option_a"])
def test_places_count_what_groups_have(name):
    """Counted the other way round: every group finds all its channels at each of its sites."""
    coupling = coupled(name)
    found = places(coupling)
    for group in coupling.groups:
        for site in group.sites:
            assert found[str(site)].groups[group.id] == group.width


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIXTURES)[::6])
def test_frozen_layers_get_the_reason_they_are_listed_with(name):
    coupling = coupled(name)
    for frozen in coupling.frozen:
        pins = [pin for found in explain(coupling, str(frozen.sites[0])) for pin in found.pins]
        assert (frozen.width, frozen.reason, frozen.node) in [(pin.width, pin.reason, pin.node) for pin in pins]
        assert all(one.b == other.a for pin in pins for one, other in pairwise(pin.path))


def test_an_unknown_site():
    with pytest.raises(KeepError, match=r"'heat' is no site of this network; did you mean 'head"):
        explain(pinned(), "heat")


def test_a_site_is_in_the_group_of_its_heads_too():
    """Queries and keys of 2 heads of 4 are tied to each other, values are not: 16 coupled channels in 24 rows."""
    made = explain(coupled("attention_fused"), "body.qkv")[0].place
    assert (made.width, made.stays) == (24, 0)
    assert made.groups == {"body.qkv.weight": 16, "body.qkv.weight#blocks": 2}


@pytest.mark.slow
def test_queries_and_values_are_tied_by_their_head_alone():
    coupling = coupled("attention_separate")
    names = [str(site.site) for site in places(coupling).values() if site.role == "makes" and len(site.groups) == 2]
    query, value = names[0], names[2]
    assert set(places(coupling)[query].groups) & set(places(coupling)[value].groups) == {f"{names[0][:-3]}#blocks"}
    steps = coupling.why(query, value)
    assert (steps[0].a, steps[-1].b) == (query, value)
    assert any("(blocks)" in step.b for step in steps)
