"""Ops of one's own: with a rule they are narrowed like any other, without one they freeze what they touch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from curlfx.cost import CostModel, macs, params
from curlfx.cost.contraction import linear as linear_contraction
from curlfx.coupling import couple
from curlfx.deploy import export_onnx
from curlfx.errors import CurlfxError, ModelError
from curlfx.graph import show, trace
from curlfx.importance import score
from curlfx.labels.arrays import Arrays
from curlfx.ops.call import OpCall
from curlfx.ops.contraction import linear
from curlfx.ops.extension import OpRule
from curlfx.ops.pointwise import pointwise
from curlfx.ops.resize import Resizing
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning import plan, plan_from_widths
from curlfx.planning.apply import slim
from curlfx.run.verify import verify
from tests.oracles import Laboratory
from tests.properties import invariants

WIDE, NARROW = 12, (0, 3, 4, 9)


@torch.library.custom_op("curlfx_test::bend", mutates_args=())
def bend(x: Tensor, slope: Tensor) -> Tensor:
    """A smooth activation with a slope per channel."""
    return torch.tanh(x * slope) + 0.5 * x


@bend.register_fake
def _(x: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("curlfx_test::normed_linear", mutates_args=())
def normed_linear(input: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:  # noqa: A002
    """A linear layer that has its number of outputs as a literal, for no better reason than kernels have."""
    if weight.shape[0] != width:
        raise ValueError(f"width {width}, weight {tuple(weight.shape)}")
    return torch.nn.functional.linear(input, weight, bias)


@normed_linear.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:  # noqa: A002
    return input.new_empty(*input.shape[:-1], width)


@torch.library.custom_op("curlfx_test::mixed", mutates_args=())
def mixed(x: Tensor) -> Tensor:
    """Something that nobody explained to curlfx: every channel is multiplied by the next one."""
    return x * x.roll(1, 1)


@mixed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, WIDE, 3), nn.Conv2d(WIDE, 4, 1)
        self.slope = nn.Parameter(torch.rand(WIDE, 1, 1))

    def forward(self, x):
        return self.last(torch.ops.curlfx_test.bend(self.first(x), self.slope))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.own, self.last = nn.Linear(5, 8), nn.Linear(8, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x):
        x = torch.ops.curlfx_test.normed_linear(self.first(x).relu(), self.own.weight, self.own.bias, WIDE)
        return self.last(x.relu())


class Unexplained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, WIDE, 1), nn.Conv2d(WIDE, 4, 1)

    def forward(self, x):
        return self.last(self.middle(torch.ops.curlfx_test.mixed(self.first(x))).relu())


def _width(call: Resizing) -> None:
    call.set("width", call.new(call.node)[-1])


RULES = {
    "curlfx_test::bend": pointwise,
    "curlfx_test::normed_linear": OpRule(linear, resize=_width, contractions=linear_contraction),
}
IMAGE, VECTOR = (3, 6, 6), (5,)


def laboratory(module: nn.Module, shape: tuple[int, ...]) -> tuple[Laboratory, tuple[Tensor, ...]]:
    inputs = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)
    traced = trace(randomise(module.double()).eval(), inputs)
    return Laboratory(traced, couple(traced, rules=RULES), show(traced)), inputs


@pytest.mark.parametrize(
    ("network", "shape", "group"), [(Bent, IMAGE, "first.weight"), (Wide, VECTOR, "own.weight")], ids=["bend", "linear"]
)
def test_an_op_with_a_rule_is_narrowed(network, shape, group):
    found, inputs = laboratory(network(), shape)
    keep = {group: NARROW}
    assert found.coupling.unsupported == ()
    assert found.coupling.group(group).width == WIDE
    invariants.open_gates_change_nothing(found, inputs)
    invariants.slim_equals_gated(found, keep, inputs)
    invariants.input_is_left_alone(found, keep, inputs)


def test_literals_and_weights_follow():
    found, inputs = laboratory(Wide(), VECTOR)
    narrow = found.slim({"own.weight": NARROW, "first.weight": (1, 2, 7)})
    (call,) = [node for node in narrow.graph.nodes if "normed_linear" in str(node.target)]
    assert call.args[3] == len(NARROW)
    assert narrow.parameter("own.weight").shape == (len(NARROW), 3)
    assert narrow.module(*inputs)[0].shape == (3,)


def test_a_literal_that_nobody_rewrites_is_refused():
    found, _ = laboratory(Wide(), VECTOR)
    bare = couple(found.traced, rules={**RULES, "curlfx_test::normed_linear": linear})
    with pytest.raises(CurlfxError, match=r"normed_linear"):
        run(found.traced, [Slim(bare, {"own.weight": NARROW})])


def test_its_multiply_adds_are_counted():
    """As of the linear layer that it is: 5*8 + 8*12 + 12*3 for one image."""
    found, _ = laboratory(Wide(), VECTOR)
    cost = CostModel(found.traced, found.coupling)
    assert cost.dense.macs == 5 * 8 + 8 * WIDE + WIDE * 3
    keep = {"own.weight": NARROW}
    left = cost.evaluate(found.coupling.alive(keep))
    assert left.macs == 5 * 8 + 8 * 4 + 4 * 3 == sum(macs(found.slim(keep), RULES).values())
    assert left.params == sum(params(found.slim(keep)).values())


def test_a_label_rule_alone_counts_no_multiply_adds():
    found, _ = laboratory(Wide(), VECTOR)
    bare = couple(found.traced, rules={**RULES, "curlfx_test::normed_linear": linear})
    assert CostModel(found.traced, bare).dense.macs == 5 * 8 + WIDE * 3


def test_a_plan_with_rules():
    found, inputs = laboratory(Wide(), VECTOR)
    scores = score(found.traced, found.coupling, "magnitude")
    decided = plan(found.traced, found.coupling, scores, {"macs": "60%"}, round_to=1)
    assert verify(found.traced, decided, inputs[0], coupling=found.coupling).passed
    narrow = slim(found.traced, decided, rules=RULES)
    assert sum(macs(narrow, RULES).values()) == decided.after.macs < decided.before.macs


def test_an_op_without_a_rule_freezes_what_it_touches():
    found, inputs = laboratory(Unexplained(), IMAGE)
    (unsupported,) = found.coupling.unsupported
    assert str(unsupported).startswith("UnsupportedOp: node 'mixed' (curlfx_test.mixed.default, coupling/test_ext")
    frozen = {str(one.sites[0]): one.reason for one in found.coupling.frozen}
    assert frozen["first.weight[0]"] == "no rule for curlfx_test.mixed.default"
    assert [group.id for group in found.coupling.groups] == ["middle.weight"]
    invariants.slim_equals_gated(found, {"middle.weight": NARROW}, inputs)


def passed_on(call: OpCall) -> Arrays:
    """A rule for ``mixed`` that is wrong: it would be silently so, were slim not compared with gated."""
    return call.arrays("x")


def test_a_wrong_rule_is_found_by_verification():
    found, inputs = laboratory(Unexplained(), IMAGE)
    wrong = couple(found.traced, rules={"curlfx_test::mixed": passed_on})
    scores = score(found.traced, wrong, "magnitude")
    decided = plan_from_widths(found.traced, wrong, scores, {"first.weight": 3})
    assert not verify(found.traced, decided, inputs[0], coupling=wrong).passed


@pytest.mark.slow
def test_export_names_the_op(tmp_path: Path):
    network = trace(Bent().eval(), (torch.randn(2, *IMAGE),))
    with pytest.raises(ModelError, match=r"cannot be exported to ONNX: curlfx_test\.bend.* has no counterpart there"):
        export_onnx(network.module, network.example_inputs, tmp_path / "a.onnx")
