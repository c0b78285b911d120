"""The graph of sites and joins, and the path that explains a tie."""

import re
from functools import cache
from itertools import pairwise

import networkx as nx
import pytest

from curlfx.coupling import Coupling, couple
from curlfx.errors import KeepError
from curlfx.graph import trace
from tests.networks.fixtures import FIXTURES


@cache
def coupled(name: str) -> Coupling:
    case = FIXTURES[name]
    return couple(trace(case.build(), case.inputs()))


def told(name, a, b):
    """The path as text, without source lines."""
    return [re.sub(r", [^,]*:\d+\)", ")", str(step)) for step in coupled(name).why(a, b)]


@pytest.mark.slow
def test_the_path_between_two_layers_of_a_stage():
    assert told("basic_downsample", "stem.0.weight", "body.stage2.0.conv1.weight[1]") == [
        "stem.0.weight[0] ─ body.stage1.0.conv2.weight[0]  by add_ (aten.add_.Tensor)",
        "body.stage1.0.conv2.weight[0] ─ body.stage1.1.conv2.weight[0]  by add__1 (aten.add_.Tensor)",
        "body.stage1.1.conv2.weight[0] ─ body.stage2.0.conv1.weight[1]  by conv2d_5 (aten.conv2d.default)",
    ]


def test_every_step_ties_neighbours():
    steps = coupled("basic_downsample").why("stem.0.weight", "body.stage1.1.conv2.weight")
    assert (steps[0].a, steps[-1].b) == ("stem.0.weight[0]", "body.stage1.1.conv2.weight[0]")
    assert all(one.b == other.a for one, other in pairwise(steps))
    assert "aten.add_.Tensor" in {step.op for step in steps}
    assert all(re.fullmatch(r"networks/joins\.py:\d+", step.where) for step in steps if step.op == "aten.add_.Tensor")


def test_a_site_and_itself():
    assert coupled("basic_downsample").why("stem.0.weight", "stem.0.weight") == []


@pytest.mark.parametrize("name", ["stem.0.weight[0]", "stem.0.weight", "stem.0"])
def test_sites_by_parameter_or_module(name):
    assert coupled("basic_downsample").why(name, "body.stage1.0.conv1.weight[1]")


def test_an_unknown_site():
    with pytest.raises(KeepError, match=r"'stem.0.wieght' is no site of this network; did you mean 'stem.0.weight"):
        coupled("basic_downsample").why("stem.0.wieght", "fc.weight")
    with pytest.raises(KeepError, match=r"^'quite another thing' is no site of this network$"):
        coupled("basic_downsample").why("fc.weight", "quite another thing")


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ("stem.0", "body.stage1.0.conv1", "they can be slimmed independently"),  # both free, in different groups
        ("stem.0", "fc", r"fc\.weight\[0\] stays; explain it alone to see why"),
        ("fc", "fc", r"fc\.weight\[0\] stays; explain it alone to see why"),
        ("stem.0.weight[1]", "fc", r"stem\.0\.weight\[1\] and fc\.weight\[0\] stay; explain them alone to see why"),
    ],
)
def test_sites_that_share_nothing(a, b, why):
    with pytest.raises(
        KeepError, match=rf"^{re.escape(a.partition('.weight')[0])}\.weight\[.\] and .* channel: {why}$"
    ):
        coupled("basic_downsample").why(a, b)


@pytest.mark.slow
def test_padded_channels_are_a_join():
    joins = [node for node, data in coupled("option_a").graph.nodes(data=True) if not data["site"]]
    assert joins == [f"{pad} (channels made here){end}" for pad in ("pad", "pad_1") for end in ("", " 2")]
    assert told("option_a", "body.0.body.1.weight", joins[0]) == [
        "body.0.body.1.weight[0] ─ pad (channels made here)  by add (aten.add.Tensor)"
    ]


@pytest.mark.slow
def test_grouped_columns_are_explained_by_the_channels_they_read():
    assert told("grouped_conv", "stem.0.weight", "body.0.0.weight[1]") == [
        "stem.0.weight[0] ─ body.0.0.weight[1]  by conv2d_1 (aten.conv2d.default)"
    ]


@pytest.mark.slow
def test_components_are_groups():
    """Sites of one group hang together in the graph; free channels are on its nodes."""
    coupling = coupled("inception")
    graph = coupling.graph
    assert graph is coupling.graph
    for group in coupling.groups:
        members = [node for node, data in graph.nodes(data=True) if set(group.channels) & set(data["channels"])]
        assert {str(site) for site in group.sites} <= set(members)
        edges = [(a, b) for a, b, data in graph.edges(data=True) if set(group.channels) & set(data["channels"])]
        assert nx.is_connected(nx.Graph(edges))
