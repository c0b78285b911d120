"""Coupling groups of small networks whose answer is known, and why the rest stays."""

from functools import cache

import numpy as np
import pytest
import torch

from curlfx.coupling import Coupling, Site, couple
from curlfx.errors import InvariantError, KeepError
from curlfx.graph import TracedModel, trace
from curlfx.passes.slim import Slim
from tests.coupling.summary import free, stays
from tests.networks.fixtures import FIXTURES
from tests.networks.net import IMAGE, TOKENS, Net, dense, drawn, pointwise, prepared, weight


@cache
def traced(name: str) -> TracedModel:
    case = FIXTURES[name]
    return trace(case.build(), case.inputs())


@cache
def coupled(name: str) -> Coupling:
    return couple(traced(name))


def coupled_net(function, *shapes, **layers) -> Coupling:
    return couple(trace(prepared(Net(function, **layers)), drawn(*(shapes or (IMAGE,)))))


def layers_of(name: str, group: str) -> list[str]:
    """Sites of a group that are no normalisation's, in order."""
    sites = [site for site in coupled(name).group(group).sites if len(shape(name, site.name)) > 1]
    return [str(site).replace(".weight", "") for site in sites]


def shape(name: str, parameter: str) -> tuple[int, ...]:
    return tuple(traced(name).parameter(parameter).shape)


def widths(name: str) -> dict[str, int]:
    return {group.id: group.width for group in coupled(name).groups}


@pytest.mark.slow
def test_residual_blocks():
    """The stem and every second convolution of a stage share their output; each first convolution is its own."""
    assert widths("basic_downsample") == {
        "stem.0.weight": 6,
        "body.stage1.0.conv1.weight": 6,
        "body.stage1.1.conv1.weight": 6,
        "body.stage2.0.conv1.weight": 8,
        "body.stage2.0.conv2.weight": 8,
        "body.stage2.1.conv1.weight": 8,
    }
    assert layers_of("basic_downsample", "stem.0.weight") == [
        "stem.0[0]",
        "body.stage1.0.conv1[1]",
        "body.stage1.0.conv2[0]",
        "body.stage1.1.conv1[1]",
        "body.stage1.1.conv2[0]",
        "body.stage2.0.conv1[1]",
        "body.stage2.0.downsample.0[1]",
    ]
    assert layers_of("basic_downsample", "body.stage2.0.conv2.weight") == [
        "body.stage2.0.conv2[0]",
        "body.stage2.0.downsample.0[0]",
        "body.stage2.1.conv1[1]",
        "body.stage2.1.conv2[0]",
        "fc[1]",
    ]


def test_a_normalisation_belongs_to_its_channels():
    sites = {str(site) for site in coupled("plain_chain").group("conv1.weight").sites}
    statistics = {f"bn1.{part}[0]" for part in ("weight", "bias", "running_mean", "running_var")}
    assert sites == {"conv1.weight[0]", "conv2.weight[1]", *statistics}


@pytest.mark.slow
def test_concatenation_reads_every_branch_separately():
    assert widths("dense_block") == {
        "stem.0.weight": 4,
        "body.0.layers.0.2.weight": 3,
        "body.0.layers.1.2.weight": 4,
        "body.0.layers.2.2.weight": 2,
    }
    assert layers_of("dense_block", "body.0.layers.0.2.weight") == [
        "body.0.layers.0.2[0]",
        "body.0.layers.1.2[1]",
        "body.0.layers.2.2[1]",
        "fc[1]",
    ]


@pytest.mark.slow
def test_depthwise_convolutions_follow_their_input():
    assert widths("inverted_residual") == {
        "stem.0.weight": 4,
        "body.0.body.0.0.weight": 8,
        "body.1.body.0.0.weight": 8,
    }
    assert layers_of("inverted_residual", "body.0.body.0.0.weight") == [
        "body.0.body.0.0[0]",
        "body.0.body.1.0[0]",
        "body.0.body.2[1]",
    ]


@pytest.mark.slow
def test_blocks_of_a_grouped_convolution():
    groups = coupled("bottleneck_grouped").groups
    assert {group.id: None if group.blocks is None else group.blocks.tolist() for group in groups} == {
        "stem.0.weight": None,
        "body.body.0.0.weight": [0, 0, 1, 1, 2, 2, 3, 3],
        "body.body.1.0.weight": [0, 0, 1, 1, 2, 2, 3, 3],
        "body.body.0.0.weight#blocks": None,
    }
    assert [group.id for group in groups if group.whole_blocks] == ["body.body.0.0.weight#blocks"]


@pytest.mark.slow
def test_option_a_shortcut_is_two_groups_per_stage():
    """What the padded shortcut carries is tied to the stem; the channels that meet its zeros are free by themselves."""
    assert widths("option_a") == {
        "stem.0.weight": 4,
        "body.0.body.0.0.weight": 8,
        "body.0.body.1.weight": 4,
        "body.1.body.0.0.weight": 12,
        "body.1.body.1.weight": 4,
    }
    coupling = coupled("option_a")
    carried = coupling.group("stem.0.weight").channels
    (rows, *_) = coupling.parameter_labels("body.0.body.1.weight")
    assert [channel in carried for channel in rows.reshape(-1)] == [False] * 2 + [True] * 4 + [False] * 2


def test_flatten_gives_every_channel_its_pixels():
    labels = coupled("flatten_linear").parameter_labels("classifier.1.weight")
    channels = coupled("flatten_linear").group("features.0.weight").channels
    assert labels[1].reshape(-1).tolist() == np.repeat(channels, 16).tolist()


@pytest.mark.slow
def test_squeeze_and_excitation():
    assert layers_of("squeeze_excitation", "body.0.0.weight") == [
        "body.0.0[0]",
        "body.1.reduce[1]",
        "body.1.expand[0]",
        "fc[1]",
    ]
    assert layers_of("squeeze_excitation", "body.1.reduce.weight") == ["body.1.reduce[0]", "body.1.expand[1]"]


def test_shared_weights_tie_both_readers():
    assert layers_of("shared_weights", "shared") == ["shared[0]", "inner.0[1]", "fc[1]"]
    assert layers_of("shared_weights", "stem.0.weight") == ["shared[1]", "stem.0[0]", "back[0]"]


@pytest.mark.slow
def test_a_module_called_twice_ties_its_output_to_its_input():
    assert layers_of("called_twice", "stem.0.weight") == ["stem.0[0]", "again.0[0]", "again.0[1]", "after.0[1]"]


@pytest.mark.slow
def test_split_cuts_one_layer_into_several_groups():
    assert widths("split_slice") == {
        "stem.0.weight": 2,
        "stem.0.weight#2": 3,
        "stem.0.weight#3": 3,
        "body.two.0.weight": 3,
        "body.join.0.weight": 6,
    }
    coupling = coupled("split_slice")
    assert coupling.group("stem.0.weight#3").channels.tolist() == [6, 7, 8]
    (rows,) = coupling.parameter_labels("stem.0.weight")
    assert rows.reshape(-1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_chunks_and_shuffles():
    """ShuffleNetV2: every channel goes its own way, so groups are what lies in the same places."""
    assert sum(widths("shuffle_v2").values()) == 24
    assert all(group.blocks is None for group in coupled("shuffle_v2").groups)


@pytest.mark.slow
def test_softmax_over_branches_leaves_channels_free():
    assert layers_of("selective_kernel", "body.branches.0.0.weight") == [
        "body.branches.0.0[0]",
        "body.branches.1.0[0]",
        "body.reduce[1]",
        "body.expand[0]",
        "fc[1]",
    ]
    assert shape("selective_kernel", "body.expand.weight")[0] == 12  # two rows per channel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "want"),
    [
        (
            "attention_separate",
            {
                "stem.0.weight": "8",
                "body.query.weight": "8 in 2 blocks",
                "body.value.weight": "8 in 2 blocks",
                "body.query.weight#blocks": "2",
            },
        ),
        # Two heads of queries and keys, two of values: cut out of one projection, they keep equal counts.
        ("attention_fused", {"stem.0.weight": "8", "body.qkv.weight": "16 in 4 blocks", "body.qkv.weight#blocks": "2"}),
        (
            "transformer",
            {
                "patches.weight": "8, statistics",
                "attention.in_proj_weight": "16 in 4 blocks",
                "mlp.0.weight": "10",
                "attention.in_proj_weight#blocks": "2",
            },
        ),
    ],
)
def test_attention(name, want):
    assert {group: text.partition(":")[0] for group, text in free(coupled(name)).items()} == want


def test_queries_are_tied_to_keys():
    coupling = coupled("attention_separate")
    assert (
        coupling.parameter_labels("body.query.bias")[0].tolist()
        == coupling.parameter_labels("body.key.bias")[0].tolist()
    )
    assert not np.isin(coupling.group("body.value.weight").channels, coupling.group("body.query.weight").channels).any()


@pytest.mark.slow
def test_outputs_stay():
    assert stays(coupled("two_head")) == {
        "classify.weight[0]": "4: an output of the network",
        "locate.weight[0]": "2: an output of the network",
    }


@pytest.mark.slow
def test_an_unknown_op_pins_what_it_touches_and_says_where():
    coupling = coupled("unknown_op")
    assert widths("unknown_op") == {"before.0.0.weight": 6, "after.0.weight": 6}
    assert stays(coupling)["before.1.weight[0]"] == "4: no rule for aten.linalg_matrix_exp.default"
    (unsupported,) = coupling.unsupported
    assert (unsupported.node, unsupported.op) == ("linalg_matrix_exp", "aten.linalg_matrix_exp.default")
    assert unsupported.where.startswith("networks/chains.py:")
    assert str(unsupported) == (
        f"UnsupportedOp: node 'linalg_matrix_exp' (aten.linalg_matrix_exp.default, {unsupported.where}): "
        "no rule; its channels stay frozen"
    )
    (frozen,) = [found for found in coupling.frozen if found.node == "linalg_matrix_exp"]
    assert (frozen.sites, frozen.width) == ((Site("before.1.weight", 0),), 4)


def test_an_unknown_op_on_masks_pins_no_one():
    coupling = coupled_net(
        lambda m, x: m.h(m.a(x).masked_fill(torch.ones(4, 4).triu(1).bool(), 0.0)), a=pointwise(3, 4), h=pointwise(4, 2)
    )
    assert not coupling.unsupported
    assert coupling.total == 4


def test_weights_that_only_meet_constants_stay():
    """The image and a table of positions are data: what is added to them, or reads them, keeps its channels."""
    coupling = coupled_net(
        lambda m, x: m.h(m.a(x) + x + m.b(m.table.expand(2, -1, -1))),
        TOKENS,
        a=dense(3, 3),
        b=dense(4, 3),
        h=dense(3, 2),
        table=weight(1, 5, 4),
    )
    assert not coupling.groups
    assert stays(coupling) == {
        "a.weight[0]": "3: meets an axis whose channels have no labels",
        "b.weight[0]": "3: meets an axis whose channels have no labels",
        "h.weight[0]": "2: an output of the network",
    }


def test_two_reasons_for_one_layer():
    coupling = coupled_net(
        lambda m, x: (m.h(m.a(x)), m.a(x)[:, :1].relu(), m.a(x)[:, 1:3].softmax(1).sum()),
        a=pointwise(3, 6),
        h=pointwise(6, 2),
    )
    assert stays(coupling)["a.weight[0]"] == (
        "1: a whole tensor hangs on this one channel; 2: aten.softmax.int runs over these channels"
    )
    assert [group.width for group in coupling.groups] == [3]


def test_a_size_that_became_a_number_keeps_its_value():
    """``y / y.shape[1]`` is a division by eight, before and after, and in the gated network."""
    coupling = coupled_net(lambda m, x: m.h(m.a(x) / m.a(x).shape[1]), a=pointwise(3, 8), h=pointwise(8, 2))
    assert [group.width for group in coupling.groups] == [8]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("conv1.weight", {"conv2.weight"}),
        ("conv1", {"conv2.weight"}),
        ("bn1", {"conv2.weight"}),  # its channels are conv1's
        ("conv?", set()),
        ("conv?.*", set()),
        ("*.running_mean", set()),
        ("fc", {"conv1.weight"}),  # it reads conv2's
    ],
)
def test_frozen_by_the_user(pattern, left):
    coupling = couple(traced("plain_chain"), frozen=[pattern])
    assert {group.id for group in coupling.groups} == left
    reasons = {found.reason for found in coupling.frozen}
    assert f"frozen by the user ({pattern})" in reasons


def test_frozen_names_that_match_nothing():
    with pytest.raises(KeepError, match=r"frozen: 'conv3' names no parameter or module of the network; did you mean"):
        couple(traced("plain_chain"), frozen=["conv1", "conv3"])


def test_a_coupling_is_the_same_every_time():
    first, second = coupled("basic_downsample"), couple(traced("basic_downsample"))
    assert free(first) == free(second)
    assert all((a.channels == b.channels).all() for a, b in zip(first.groups, second.groups, strict=True))


def test_channels_are_numbered_in_the_order_of_groups():
    coupling = coupled("basic_downsample")
    assert np.concatenate([group.channels for group in coupling.groups]).tolist() == list(range(1, coupling.total + 1))
    assert coupling.total == 6 + 6 + 6 + 8 + 8 + 8
    assert coupling.free_share == pytest.approx(1 - 4 / 74)


def test_labels_of_nodes_parameters_and_parts():
    coupling = coupled("split_slice")
    stem = [array.shape for array in coupling.parameter_labels("stem.0.weight")]
    assert stem == [(8, 1, 1, 1)]  # the image's channels have none
    assert coupling.parameter_labels("stem.0.nothing") == ()
    assert coupling.labels("nothing") == ()
    (split,) = [node.name for node in traced("split_slice").graph.nodes if "split" in str(node.target)]
    parts = coupling.part_labels(split, 3)
    assert [[array.shape for array in arrays] for arrays in parts] == [[(1, 2, 1, 1)], [(1, 3, 1, 1)], [(1, 3, 1, 1)]]
    assert coupling.labels(split) == ()
    assert coupling.part_labels("conv2d", 2) == [(), ()]
    assert coupling.labels("getitem_1")[0].tolist() == parts[1][0].tolist()


def test_a_coupling_belongs_to_its_graph():
    coupled("plain_chain").check(traced("plain_chain"))
    with pytest.raises(InvariantError, match="is not in this graph; couple the graph itself"):
        coupled("plain_chain").check(traced("two_head"))
    slim = Slim(coupled("plain_chain"), {"conv2.weight": (1, 2)})(traced("plain_chain"))
    with pytest.raises(
        InvariantError, match=r"node 'conv2_weight' is \(2, 6, 3, 3\) in this graph, the coupling is of"
    ):
        coupled("plain_chain").check(slim)


def test_reads_are_where_gates_go():
    """Every contraction that reads labelled channels, once."""
    reads = coupled("plain_chain").reads
    assert [reader for reader, _ in reads] == ["conv2d_1", "linear"]
    assert [source for _, source in reads] == ["relu", "mean"]
