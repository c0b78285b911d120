"""`slim` carries out a plan, on the network it was made for."""

import copy

import pytest
import torch
from torch import nn

from curlfx.coupling import couple
from curlfx.errors import PlanError, UsageError
from curlfx.graph import show, trace
from curlfx.importance import score
from curlfx.passes.slim import Slim
from curlfx.planning import SlimPlan, plan
from curlfx.planning.apply import slim


def network(*widths: int) -> nn.Module:
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(3, first, 1), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU(), nn.Conv2d(second, 2, 1)
    )


def traced(net: nn.Module):
    return trace(net, (torch.randn(2, 3, 4, 4),))


def planned(net: nn.Module, frozen=()) -> SlimPlan:
    graph = traced(net)
    coupling = couple(graph, frozen=frozen)
    return plan(graph, coupling, score(graph, coupling, "random", seed=7), {"macs": "60%"}, round_to=1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network(6, 8)


@pytest.fixture(scope="module")
def made(net) -> SlimPlan:
    return planned(net)


def test_the_plan_is_carried_out(net, made):
    graph = traced(net)
    result = slim(graph, made)
    assert show(result) == show(Slim(couple(graph), made.keep)(graph))
    kept = list(made.keep["0.weight"])
    assert len(kept) < 6
    assert torch.equal(result.parameter("0.weight"), net[0].weight[kept])
    assert result.parameter("0.weight").requires_grad
    assert list(result.module.state_dict()) == list(net.state_dict())


def test_a_plan_from_a_file(net, made, tmp_path):
    made.save(tmp_path / "plan.json")
    graph = traced(net)
    assert show(slim(graph, SlimPlan.load(tmp_path / "plan.json"))) == show(slim(graph, made))


def test_other_weights_of_the_same_architecture(made):
    other = network(6, 8)
    kept = list(made.keep["2.weight"])
    assert torch.equal(slim(traced(other), made).parameter("2.bias"), other[2].bias[kept])


def test_the_network_stays_as_it_is(net, made):
    graph = traced(net)
    text = show(graph)
    result = slim(graph, made)
    with torch.no_grad():
        for tensor in result.tensors().values():
            tensor.zero_()
    assert show(graph) == text
    assert torch.equal(graph.parameter("4.bias"), net[4].bias)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            network(5, 8),
            r"another network: parameter '0\.weight' is \(6, 3, 1, 1\) in the plan's network, \(5, 3, 1, 1\) here",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)),
            "this plan is for another network: it has no parameter",
        ),
        (
            nn.Sequential(*network(6, 8), nn.BatchNorm2d(2)),
            "this plan is for another network: it has parameter '5.weight'",
        ),
    ],
)
def test_another_network_is_refused(made, other, message):
    with pytest.raises(PlanError, match=message):
        slim(traced(other), made)


def test_a_slim_network_is_another_network(net, made):
    with pytest.raises(PlanError, match="this plan is for another network"):
        slim(slim(traced(net), made), made)


@pytest.mark.parametrize("frozen", [["0"], ["0", "2.weight"], ["*.bias"]])
def test_frozen_names_go_with_the_plan(net, frozen):
    graph = traced(net)
    coupling = couple(graph, frozen=frozen)
    scores = score(graph, coupling, "random", seed=7)
    made = SlimPlan.from_json(plan(graph, coupling, scores, {"macs": "100%"}, round_to=1).to_json())
    assert made.widths.keys() == {group.id for group in coupling.groups}
    assert show(slim(graph, made)) == show(graph)
    if coupling.groups:
        assert "0.weight" not in made.widths
        with pytest.raises(PlanError, match=r"it has coupling group '0\.weight', which the plan's network has not"):
            slim(graph, made, couple(graph))


def test_a_frozen_name_that_another_network_lacks(net):
    made = planned(net, frozen=["0"])
    other = nn.Sequential(nn.Identity(), *network(6, 8))
    with pytest.raises(PlanError, match=r"this plan is for another network: it has no parameter '0\.weight'"):
        slim(traced(other), made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_memory_format_and_batch_do_not_matter(made, dtype):
    other = network(6, 8).to(dtype).to(memory_format=torch.channels_last)
    graph = trace(other, (torch.randn(5, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last),))
    kept = list(made.keep["0.weight"])
    assert torch.equal(slim(graph, made).parameter("0.weight"), other[0].weight[kept])


def test_a_network_in_training_mode(net, made):
    graph = traced(nn.Sequential(*net))
    graph.module.train()
    assert slim(graph, made).module.training


def test_biases_absorb_what_goes_when_asked_to(net, made):
    live = copy.deepcopy(net)
    for layer in (live[0], live[2]):
        nn.init.constant_(layer.bias, 0.5)  # what is negative does not come through the activation
    graph = traced(live)
    plain, absorbed = slim(graph, made), slim(graph, made, absorb_bias="exact")
    assert show(plain) == show(absorbed)
    after = absorbed.module.state_dict()
    changed = [name for name, tensor in plain.module.state_dict().items() if not torch.equal(tensor, after[name])]
    readers = {"0.weight": "2.bias", "2.weight": "4.bias"}
    assert changed == [reader for group, reader in readers.items() if group in made.keep]
    assert changed
    with pytest.raises(UsageError, match="absorb_bias = 'all': want 'none', 'exact' or 'mean'"):
        slim(graph, made, absorb_bias="all")
    graph.module.train()
    with pytest.raises(UsageError, match="training mode"):
        slim(graph, made, absorb_bias="mean")
