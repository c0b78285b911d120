"""Oracles that know nothing of labels, gates or passes: rows zeroed by hand, and networks built narrow by hand."""

import pytest
import torch

from benchmarks.trial import relative_error
from tests.networks.chains import PlainChain
from tests.networks.fixtures import FIXTURES
from tests.networks.gates import GroupNormNet, LayerNormNet
from tests.oracles import Laboratory, closed_by_hand, narrowed

BN = ("weight", "bias")

# Network, group, its width, and every row of the original module that makes these channels (offset of channel 0).
BY_HAND = [
    ("plain_chain", "conv1.weight", 6, {"conv1.weight": [0], "bn1.weight": [0], "bn1.bias": [0]}),
    ("plain_chain", "conv2.weight", 8, {"conv2.weight": [0], "conv2.bias": [0], "bn2.weight": [0], "bn2.bias": [0]}),
    ("flatten_linear", "features.0.weight", 6, {"features.0.weight": [0], "features.0.bias": [0]}),
    ("flatten_linear", "classifier.1.weight", 10, {"classifier.1.weight": [0], "classifier.1.bias": [0]}),
    ("conv1d", "0.weight", 6, {"1.weight": [0], "1.bias": [0]}),
    ("conv3d", "0.weight", 6, {"1.weight": [0], "1.bias": [0]}),
    (
        "basic_identity",
        "stem.0.weight",
        6,
        {f"{bn}.{row}": [0] for bn in ("stem.1", "body.0.bn2", "body.1.bn2") for row in BN},
    ),
    ("basic_identity", "body.0.conv1.weight", 6, {f"body.0.bn1.{row}": [0] for row in BN}),
    (
        "basic_downsample",
        "body.stage2.0.conv2.weight",
        8,
        {f"body.stage2.{bn}.{row}": [0] for bn in ("0.bn2", "0.downsample.1", "1.bn2") for row in BN},
    ),
    (
        "inverted_residual",
        "body.0.body.0.0.weight",
        8,
        {f"body.0.body.{bn}.{row}": [0] for bn in ("0.1", "1.1") for row in BN},
    ),
    ("inception", "body.three.1.0.weight", 5, {f"body.three.1.1.{row}": [0] for row in BN}),
    ("input_concat", "first.0.weight", 6, {f"first.1.{row}": [0] for row in BN}),
    ("called_twice", "after.0.weight", 8, {f"after.1.{row}": [0] for row in BN}),
    ("transformer", "mlp.0.weight", 10, {"mlp.0.weight": [0], "mlp.0.bias": [0]}),
]


def group_of(coupling, site):
    """The group that holds a parameter's first axis, whatever it is called."""
    for group in coupling.groups:
        if any(member.name == site and member.axis == 0 for member in group.sites):
            return group
    raise AssertionError(f"{site} is not free")


@pytest.mark.parametrize(
    ("name", "site", "width", "rows"), BY_HAND, ids=lambda value: value if isinstance(value, str) else ""
)
def test_slim_equals_rows_zeroed_by_hand(name, site, width, rows):
    case = FIXTURES[name]
    laboratory = Laboratory.of(case.build(), case.inputs())
    group = group_of(laboratory.coupling, site)
    assert group.width == width
    kept = (1, 2, width - 1)
    slim = laboratory.slim({group.id: kept}).module
    closed = closed_by_hand(case.build(), rows, [channel for channel in range(width) if channel not in kept])
    with torch.no_grad():
        assert relative_error(slim(*case.inputs(3)), closed(*case.inputs(3))) <= 1e-9


def test_chain_equals_network_built_narrow():
    case = FIXTURES["plain_chain"]
    module = case.build()
    laboratory = Laboratory.of(module, case.inputs())
    one, two = (0, 3, 4), (1, 2, 5, 7)
    axes = {
        "conv1.weight": {0: one}, "conv2.weight": {0: two, 1: one}, "conv2.bias": {0: two}, "fc.weight": {1: two},
        **{f"bn1.{part}": {0: one} for part in (*BN, "running_mean", "running_var")},
        **{f"bn2.{part}": {0: two} for part in (*BN, "running_mean", "running_var")},
    }  # fmt: skip
    narrow = narrowed(PlainChain((3, 4)), module.state_dict(), axes)
    slim = laboratory.slim({"conv1.weight": one, "conv2.weight": two}).module
    assert {key: tensor.shape for key, tensor in slim.state_dict().items()} == {
        key: tensor.shape for key, tensor in narrow.state_dict().items()
    }
    with torch.no_grad():
        assert relative_error(slim(*case.inputs()), narrow(*case.inputs())) <= 1e-12


def test_group_norm_equals_network_built_narrow():
    """Statistics over the kept channels of every group: two of four channels stay in each of two groups."""
    case = FIXTURES["group_norm"]
    module = case.build()
    laboratory = Laboratory.of(module, case.inputs())
    one, two = (0, 2, 3, 5), (0, 3, 5, 6)
    axes = {
        "conv1.weight": {0: one}, "conv1.bias": {0: one}, "norm1.weight": {0: one}, "norm1.bias": {0: one},
        "conv2.weight": {0: two, 1: one}, "conv2.bias": {0: two}, "norm2.weight": {0: two}, "norm2.bias": {0: two},
        "fc.weight": {1: two},
    }  # fmt: skip
    narrow = narrowed(GroupNormNet((4, 4)), module.state_dict(), axes)
    slim = laboratory.slim({"conv1.weight": one, "conv2.weight": two}).module
    with torch.no_grad():
        assert relative_error(slim(*case.inputs()), narrow(*case.inputs())) <= 1e-12


def test_layer_norm_equals_network_built_narrow():
    case = FIXTURES["layer_norm"]
    module = case.build()
    laboratory = Laboratory.of(module, case.inputs())
    one, two = (1, 2, 5), (0, 3, 4, 7)
    axes = {
        "conv.weight": {0: one}, "conv.bias": {0: one}, "norm1.weight": {0: one}, "norm1.bias": {0: one},
        "fc1.weight": {0: two, 1: one}, "fc1.bias": {0: two}, "norm2.weight": {0: two}, "fc2.weight": {1: two},
    }  # fmt: skip
    narrow = narrowed(LayerNormNet((3, 4)), module.state_dict(), axes)
    slim = laboratory.slim({"conv.weight": one, "fc1.weight": two}).module
    with torch.no_grad():
        assert relative_error(slim(*case.inputs()), narrow(*case.inputs())) <= 1e-12
