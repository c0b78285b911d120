"""What cannot be traced is refused with the line of the user's code and what to do."""

import pytest
import torch
from torch import nn

from curlfx.errors import InvariantError, TraceError
from curlfx.graph import check, trace
from tests.graph.networks import Branching, Small


def test_control_flow_that_depends_on_data():
    with pytest.raises(
        TraceError, match=r"graph/networks\.py:\d+: the control flow depends on values of a tensor; "
    ) as info:
        trace(Branching(), torch.randn(2, 3))
    assert info.value.__cause__ is not None
    assert info.value.exit_code == 2
    assert "torch.where" in str(info.value)


def test_wrong_input_shape():
    message = r"the model's own forward fails on the example inputs \(torch\.float32 \[2, 4, 6, 6\]\): .*; give inputs"
    with pytest.raises(TraceError, match=message) as info:
        trace(Small(), torch.randn(2, 4, 6, 6))
    assert "graph/networks.py:" in str(info.value)


def test_a_failed_trace_restores_the_mode():
    model = Small().train()
    with pytest.raises(TraceError):
        trace(model, torch.randn(2, 4, 6, 6))
    assert model.training
    assert model.bn.training


def test_too_few_inputs():
    with pytest.raises(TraceError, match="own forward fails"):
        trace(Small(), ())


def test_a_branch_inside_the_graph():
    class Conditional(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    with pytest.raises(TraceError, match=r"cond"):
        trace(Conditional(), torch.randn(2, 3))


def test_no_module_and_no_inputs():
    with pytest.raises(TraceError, match=r"model is a function, want a torch\.nn\.Module"):
        trace(lambda x: x, torch.randn(2, 3))
    with pytest.raises(TraceError, match=r"example_inputs is a list, want a tensor or a tuple"):
        trace(Small(), [torch.randn(2, 3, 6, 6)])


def test_a_child_with_the_name_of_something_else():
    model = nn.Module()
    model.graph = nn.Linear(3, 3)
    with pytest.raises(
        TraceError, match=r"the model's 'graph' has the name of an attribute of torch\.fx\.GraphModule; rename it"
    ):
        trace(model, torch.randn(2, 3))


def damaged(damage):
    traced = trace(Small(), torch.randn(2, 3, 6, 6)).clone()
    damage(traced)
    return traced


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.remove_parameter("fc.bias"), r"fc\.bias"),
        (
            lambda t: t.set_parameter("fc.weight", torch.zeros(2, 5)),
            r"node 'linear' \(aten\.linear\.default, graph/networks\.py:\d+\) .*: \(2, 4\), \(2, 5\), \(2,\)",
        ),
        (lambda t: t.graph.call_function(torch.relu, (next(iter(t.graph.nodes)),)), r"node 'relu_1' is dead|malformed"),
        (lambda t: t.graph.create_node("call_module", "fc", ()), r"malformed|no place"),
    ],
)
def test_the_verifier_names_the_fault_and_shows_the_graph(damage, message):
    with pytest.raises(InvariantError, match=message) as info:
        check(damaged(damage))
    assert "please report it with this graph:\n%conv.weight = parameter" in str(info.value)


def test_an_exported_module_cannot_change_its_mode():
    exported = torch.export.export(Small().eval(), (torch.randn(2, 3, 6, 6),)).module()
    with pytest.raises(
        TraceError, match=r"the model refuses to change its mode: .*; trace the module it was made from"
    ):
        trace(exported, torch.randn(2, 3, 6, 6))
