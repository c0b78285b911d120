"""What is supported: the table, twins of its entries, and what users add."""

import pytest
import torch
from torch import Tensor

from curlfx.coupling import couple
from curlfx.graph import trace
from curlfx.ops import movement, pointwise, reduction
from curlfx.ops.call import OpCall
from curlfx.ops.resize import RESIZE, resize_for
from curlfx.ops.table import RULES, rule_for
from tests.coupling.summary import lines
from tests.networks.net import IMAGE, between, drawn, prepared

aten = torch.ops.aten


@pytest.mark.parametrize("table", [RULES, RESIZE])
def test_every_entry_is_an_op(table):
    missing = [name for name in table if not hasattr(aten, name.partition(".")[0])]
    assert missing == []


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        (aten.relu.default, pointwise.pointwise),  # by its tag
        (aten.relu6_.default, pointwise.pointwise),  # in place, by its name
        (aten.threshold_.default, pointwise.pointwise),  # in place, by the tag of its twin
        (aten.squeeze_.dim, movement.reshaped),
        (aten.max.dim, reduction.extremum),  # by overload
        (aten.max.default, reduction.statistic),
        (aten.max.other, pointwise.pointwise),
        (aten.linalg_svd.default, None),
        (aten.sym_size.int, None),
        (torch.ops.quantized.add.default, None),  # another namespace
        (getattr, None),
    ],
)
def test_rule_for(target, rule):
    assert rule_for(target) is rule


def test_resize_for():
    assert resize_for(aten.view.default) is RESIZE["view"]
    assert resize_for(aten.relu.default) is None
    assert resize_for(getattr) is None


@torch.library.custom_op("curlfx_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def passing(call: OpCall):
    return call.arrays(call.tensors()[0])


@pytest.mark.parametrize("key", ["curlfx_test::twice", twice._opoverload, torch.ops.curlfx_test.twice])
def test_users_bring_rules_for_their_ops(key):
    traced = trace(prepared(between(lambda m, y: twice(y))), drawn(IMAGE))
    without = couple(traced)
    assert lines(without) == ["a.weight[0] stays, 8: no rule for curlfx_test.twice.default"]
    assert str(without.unsupported[0]).startswith("UnsupportedOp: node 'twice' (curlfx_test.twice.default, ")
    coupling = couple(traced, rules={key: passing})
    assert lines(coupling) == ["8: a.weight[0] h.weight[1]"]
    assert not coupling.unsupported


def test_users_may_overrule():
    """A user's rule comes before the table."""

    def stays(call: OpCall):
        call.freeze(call.arrays("self"), "this network's sigmoid stays whole")
        return ()

    traced = trace(prepared(between(lambda m, y: y.sigmoid())), drawn(IMAGE))
    assert lines(couple(traced, rules={"aten::sigmoid": stays})) == [
        "a.weight[0] stays, 8: this network's sigmoid stays whole"
    ]
