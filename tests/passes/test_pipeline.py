"""The pipeline believes no pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from curlfx.errors import InvariantError, UsageError
from curlfx.graph import TracedModel, show, trace
from curlfx.passes.base import Pass
from curlfx.passes.pipeline import PassRecord, run
from tests.graph.networks import Small, Tied, randomise


@dataclass(frozen=True)
class Doing(Pass):
    """Does what a test says."""

    name: ClassVar[str] = "doing"
    what: Callable[[TracedModel], bool]
    allowed: bool = True
    good: bool = True

    def requires(self, traced):
        if not self.allowed:
            raise UsageError("not this network")

    def rewrite(self, traced):
        return self.what(traced)

    def ensures(self, before, after):
        assert show(before) != show(after)
        assert all("val" in node.meta for node in after.graph.nodes)
        if not self.good:
            raise InvariantError("a broken promise")


@pytest.fixture
def traced():
    return trace(randomise(Small()), torch.randn(1, 3, 6, 6))


def nothing(traced):
    return False


def without_relu(traced):
    (relu,) = traced.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.replace_all_uses_with(relu.args[0])  # and relu itself is left to be swept
    return True


def new_bias(traced):
    traced.set_parameter("fc.bias", torch.tensor([5.0, 7.0]))
    without_relu(traced)
    return True


def test_a_pass_that_does_nothing(traced):
    text = show(traced)
    result, records = run(traced, [Doing(nothing), Doing(nothing)])
    assert show(result) == show(traced) == text
    assert [record.changed for record in records] == [False, False]
    assert result is not traced
    assert not {id(t) for t in result.tensors().values()} & {id(t) for t in traced.tensors().values()}


def test_passes_run_in_order_and_the_input_stays(traced):
    text, x = show(traced), torch.randn(3, 3, 6, 6)
    before = traced.module(x)
    result, records = run(traced, [Doing(nothing), Doing(without_relu)])
    assert [type(record) for record in records] == [PassRecord] * 2
    assert [record.changed for record in records] == [False, True]
    assert all(record.seconds > 0 for record in records)
    assert "relu" not in show(result)
    assert show(traced) == text
    assert torch.equal(traced.module(x), before)
    assert not torch.equal(result.module(x), before)


def test_the_result_owns_its_weights_unless_told_otherwise(traced):
    theirs = traced.tensors()
    own = run(traced, [Doing(new_bias)])[0].tensors()
    assert list(own) == list(theirs)
    assert not any(own[name] is theirs[name] for name in theirs)
    assert not any(own[name].data_ptr() == theirs[name].data_ptr() for name in theirs)
    shared = run(traced, [Doing(new_bias)], own_weights=False)[0].tensors()
    assert [name for name in theirs if shared[name] is not theirs[name]] == ["fc.bias"]


def test_ties_survive(traced):
    result = run(trace(Tied(), torch.randn(2, 5)), [Doing(nothing)])[0]
    assert result.module.a.weight is result.module.b.weight


def test_a_call_runs_one_pass(traced):
    assert "relu" not in show(Doing(without_relu)(traced))


def test_a_refusal_comes_before_anything_is_touched(traced):
    with pytest.raises(UsageError, match="not this network"):
        run(traced, [Doing(pytest.fail, allowed=False)])


def test_a_broken_promise(traced):
    with pytest.raises(InvariantError, match="after doing: a broken promise"):
        run(traced, [Doing(without_relu, good=False)])


def test_a_broken_network(traced):
    def breaking(clone):
        clone.set_parameter("fc.weight", torch.zeros(2, 3))
        return True

    with pytest.raises(InvariantError, match=r"after doing: node 'linear' .*please report it with this graph"):
        run(traced, [Doing(breaking)])


def test_a_change_that_is_not_admitted(traced):
    with pytest.raises(InvariantError, match="doing says that it changed nothing, and did"):
        run(traced, [Doing(lambda clone: new_bias(clone) and False)])


def test_a_change_of_the_input(traced):
    def writing(clone):
        with torch.no_grad():
            clone.parameter("fc.bias").add_(1)
        return True

    with pytest.raises(InvariantError, match="doing changed its input"):
        run(traced, [Doing(writing)])
