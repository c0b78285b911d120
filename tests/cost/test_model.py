"""The cost model against the slimmed network, counted node by node."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from benchmarks.trial import random_keep
from curlfx.cost import CostModel, macs, params
from curlfx.coupling import Coupling, couple
from curlfx.errors import KeepError
from curlfx.graph import TracedModel, trace
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from tests.networks.fixtures import FIXTURES


def check_against_slim(traced: TracedModel, coupling: Coupling, keep: dict[str, tuple[int, ...]]) -> None:
    costs = CostModel(traced, coupling)
    alive = coupling.alive(keep)
    found = costs.evaluate(alive)
    slim, _ = run(traced, [Slim(coupling, keep)], own_weights=False)
    assert costs.node_macs(alive) == macs(slim)
    assert costs.tensor_params(alive) == params(slim)
    assert found.macs == sum(macs(slim).values())
    assert found.params == sum(params(slim).values())
    again = CostModel(slim, couple(slim))
    assert found.size_bytes == again.dense.size_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_equals_the_slim_network(name: str) -> None:
    case = FIXTURES[name]
    traced = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    coupling = couple(traced)
    costs = CostModel(traced, coupling)
    assert costs.node_macs(costs.everything()) == macs(traced)
    assert costs.tensor_params(costs.everything()) == params(traced)
    for ratio in (0.3, 0.7):
        check_against_slim(traced, coupling, random_keep(coupling.groups, ratio, seed=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in ("googlenet", "resnext50_32x4d", "shufflenet_v2_x0_5")
        ),
        "mobilenet_v3_small",
        "vgg11_bn",
    ],
)
def test_equals_the_slim_torchvision_network(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "vgg11_bn") else {}
    traced = trace(torchvision.models.get_model(name, weights=None, **options), (torch.randn(2, 3, 64, 64),))
    coupling = couple(traced)
    check_against_slim(traced, coupling, random_keep(coupling.groups, 0.4, seed=1))


def curl_keep(coupling: Coupling) -> dict[str, tuple[int, ...]]:
    """The widths of CURL's ImageNet network (stage, then its blocks' inner widths), by group."""
    listed = {
        "layer1": (212, 43, 41, 19, 25, 19, 62),
        "layer2": (345, 92, 102, 38, 44, 38, 52, 38, 46),
        "layer3": (390, 203, 148, *[76] * 10),
        "layer4": (2048, *[153] * 6),
    }
    widths: dict[str, int] = {}
    for stage, (outer, *inner) in listed.items():
        widths[f"{stage}.0.conv3.weight"] = outer
        for block in range(len(inner) // 2):
            widths[f"{stage}.{block}.conv1.weight"], widths[f"{stage}.{block}.conv2.weight"] = inner[2 * block :][:2]
    assert {group.id for group in coupling.groups} == {*widths, "conv1.weight"}
    return {group: tuple(range(width)) for group, width in widths.items()}


@pytest.mark.slow
def test_resnet50_golden() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    traced = trace(model, (torch.empty(2, 3, 224, 224, device="meta"),))
    coupling = couple(traced)
    costs = CostModel(traced, coupling)
    assert (costs.dense.macs, costs.dense.params) == (4_089_184_256, 25_557_032)
    slim = costs.evaluate(coupling.alive(curl_keep(coupling)))
    assert (slim.macs, slim.params) == (1_110_843_275, 6_668_506)
    saving = costs.per_channel("layer1.0.conv1.weight")
    assert (saving.macs, saving.params) == (56 * 56 * (64 + 9 * 64), 64 + 9 * 64 + 2)


def build(module: nn.Module, channels: int = 3) -> tuple[TracedModel, Coupling]:
    traced = trace(module, (torch.randn(2, channels, 4, 4),))
    return traced, couple(traced)


@pytest.mark.parametrize(
    ("kept", "block", "want"),
    [
        (20, 16, 16 * 9 * (3 * 32 + 32 * 16)),
        (16, 16, 16 * 9 * (3 * 16 + 16 * 16)),
        (3, 16, 16 * 9 * (3 * 3 + 3 * 16)),
        (20, 8, 16 * 9 * (3 * 24 + 24 * 16)),
        (20, 1, 16 * 9 * (3 * 20 + 20 * 10)),
    ],
)
def test_padded_macs_by_hand(kept: int, block: int, want: int) -> None:
    traced, coupling = build(nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 10, 3, padding=1)))
    alive = coupling.alive({"0.weight": tuple(range(kept))})
    assert CostModel(traced, coupling, block=block).evaluate(alive).padded_macs == want


def test_padded_macs_of_grouped_and_depthwise_convolutions() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 40, 1),
        nn.Conv2d(40, 20, 1, groups=2), nn.Conv2d(20, 16, 1),
    )  # fmt: skip
    traced, coupling = build(net)
    costs = CostModel(traced, coupling)
    want = 16 * (3 * 32 + 9 * 32 + 32 * 48 + 2 * 32 * 16 + 32 * 16)
    assert costs.dense.padded_macs == want
    assert CostModel(traced, coupling, block=1).dense.padded_macs == costs.dense.macs
    first = next(group for group in coupling.groups if group.id == "0.weight")
    alive = coupling.alive({first.id: tuple(range(17, 24))})
    assert costs.evaluate(alive).padded_macs == 16 * (3 * 16 + 9 * 16 + 16 * 48 + 2 * 32 * 16 + 32 * 16)


@pytest.mark.slow
def test_savings_are_what_the_next_keep_set_saves() -> None:
    traced, coupling = build(FIXTURES["attention_fused"].build().float(), 3)
    costs = CostModel(traced, coupling)
    for group in coupling.groups:
        blocks = np.zeros(group.width, int) if group.blocks is None else group.blocks
        firsts = [int(np.flatnonzero(blocks == block)[-1]) for block in np.unique(blocks)]
        keep = {group.id: tuple(sorted(set(range(group.width)) - set(firsts)))}
        if not keep[group.id]:
            continue
        left = costs.evaluate(coupling.alive(keep))
        saving = costs.per_channel(group.id)
        assert saving.macs * len(firsts) == pytest.approx(costs.dense.macs - left.macs)
        assert saving.params * len(firsts) == pytest.approx(costs.dense.params - left.params)


@pytest.mark.slow
def test_layer_macs_are_named_by_weights_and_add_up() -> None:
    traced, coupling = build(FIXTURES["attention_fused_matmul"].build().float())
    costs = CostModel(traced, coupling)
    layers = costs.layer_macs(costs.everything())
    assert sum(layers.values()) == costs.dense.macs
    products = set(layers) - set(params(traced))
    assert len(products) == 2  # query times key, attention times value


def test_refuses_a_vector_of_another_network() -> None:
    traced, coupling = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)))
    with pytest.raises(KeepError, match=r"alive: found \(3,\)"):
        CostModel(traced, coupling).evaluate(np.ones(3, bool))
