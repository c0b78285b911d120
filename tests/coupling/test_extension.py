"""Ops of one's own: with a rule they are narrowed like any other, without one they freeze what they touch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import randomise
from curlfx.coupling import couple
from curlfx.deploy import export_onnx
from curlfx.errors import ModelError
from curlfx.graph import show, trace
from curlfx.importance import score
from curlfx.labels.arrays import Arrays
from curlfx.ops.call import OpCall
from curlfx.ops.pointwise import pointwise
from curlfx.planning import plan_from_widths
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


class Unexplained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, WIDE, 1), nn.Conv2d(WIDE, 4, 1)

    def forward(self, x):
        return self.last(self.middle(torch.ops.curlfx_test.mixed(self.first(x))).relu())


RULES = {"curlfx_test::bend": pointwise}
IMAGE = (3, 6, 6)


def laboratory(module: nn.Module, shape: tuple[int, ...]) -> tuple[Laboratory, tuple[Tensor, ...]]:
    inputs = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)
    traced = trace(randomise(module.double()).eval(), inputs)
    return Laboratory(traced, couple(traced, rules=RULES), show(traced)), inputs


@pytest.mark.parametrize(("network", "shape", "group"), [(Bent, IMAGE, "first.weight")], ids=["bend"])
def test_an_op_with_a_rule_is_narrowed(network, shape, group):
    found, inputs = laboratory(network(), shape)
    keep = {group: NARROW}
    assert found.coupling.unsupported == ()
    assert found.coupling.group(group).width == WIDE
    invariants.open_gates_change_nothing(found, inputs)
    invariants.slim_equals_gated(found, keep, inputs)
    invariants.input_is_left_alone(found, keep, inputs)


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


def test_export_names_the_op(tmp_path: Path):
    network = trace(Bent().eval(), (torch.randn(2, *IMAGE),))
    with pytest.raises(ModelError, match=r"cannot be exported to ONNX: curlfx_test\.bend.* has no counterpart there"):
        export_onnx(network.module, network.example_inputs, tmp_path / "a.onnx")
