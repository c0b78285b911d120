"""The fingerprint: the same for what computes the same, and a difference that is named for what does not."""

import copy
import re
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn

from curlfx.coupling import couple
from curlfx.graph import TracedModel, trace
from curlfx.planning.fingerprint import Fingerprint
from curlfx.planning.structure import class_of, structure
from tests.networks.fixtures import FIXTURES


class Joined(nn.Module):
    """Two convolutions of one input, joined as ``join`` says."""

    def __init__(self, join: str = "add", scale: float = 2.0, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, stride=stride)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(3, 4, 1, stride=stride)
        self.head = nn.Linear(4, 2)
        self.join, self.scale = join, scale

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.relu(self.bn(self.first(x))), self.second(x)
        y = a + b if self.join == "add" else a * b
        return self.head((y * self.scale).mean((2, 3)))


class Cut(nn.Module):
    """Reshapes that hold the batch size in their literals when it is fixed."""

    def __init__(self, table: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.register_buffer("order", torch.tensor([2, 0, 1]) if table else torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.linear(x).view(x.shape[0] * 3, 4, -1)[:]
        return heads.reshape(x.shape[0], 3, 4, -1).index_select(1, self.order).expand(x.shape[0], 3, 4, 5)


def traced(net: nn.Module, shape: tuple[int, ...] = (2, 3, 8, 8), dynamic: bool = True) -> TracedModel:
    return trace(net, (torch.randn(shape),), dynamic_batch=dynamic)


def fingerprint(graph: TracedModel) -> Fingerprint:
    return Fingerprint.of(graph, couple(graph))


def test_lines_of_a_small_network() -> None:
    graph = traced(Joined())
    found = structure(graph)
    assert (found.batch, found.inputs) == (None, ("[N, 3, 8, 8]",))
    assert [op.text for op in found.ops] == [
        "aten.conv2d(input0, first.weight, first.bias, [1, 1], [1, 1]) : [N, 4, 8, 8]",
        "aten.batch_norm(%0, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, 1e-05) : [N, 4, 8, 8]",
        "aten.relu(%1) : [N, 4, 8, 8]",
        "aten.conv2d(input0, second.weight, second.bias) : [N, 4, 8, 8]",
        "aten.add.Tensor(%2, %3) : [N, 4, 8, 8]",
        "aten.mul.Tensor(%4, 2.0) : [N, 4, 8, 8]",
        "aten.mean.dim(%5, [2, 3]) : [N, 4]",
        "aten.linear(%6, head.weight, head.bias) : [N, 2]",
        "return [%7]",
    ]
    assert found.ops[2].module == "relu"
    assert re.fullmatch(r"planning/test_fingerprint\.py:\d+", found.ops[2].line)
    assert class_of(graph) == f"{Joined.__module__}.Joined"


@pytest.mark.slow
def test_weights_mode_device_names_and_batch_leave_it_alone() -> None:
    want = fingerprint(traced(Joined()))
    renamed = traced(Joined(), (5, 3, 8, 8))
    for number, node in enumerate(renamed.graph.nodes):
        node.name = f"other_{number}"
    training = traced(Joined())
    training.module.train()
    with torch.device("meta"):
        weightless = trace(Joined(), (torch.empty(2, 3, 8, 8),))
    for same in (traced(Joined(), (7, 3, 8, 8)), renamed, training, weightless, traced(Joined(), dynamic=False)):
        assert fingerprint(same).sha256 == want.sha256
        assert want.difference(same, couple(same)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_floating_types_are_alike(dtype: torch.dtype) -> None:
    net = Joined().to(dtype).to(memory_format=torch.channels_last)
    other = trace(net, (torch.randn(2, 3, 8, 8, dtype=dtype),))
    assert fingerprint(other) == fingerprint(traced(Joined()))
    assert fingerprint(copy.deepcopy(traced(Joined())).to(dtype)) == fingerprint(traced(Joined()))


@pytest.mark.slow
def test_another_process_finds_the_same() -> None:
    code = """
        import torch
        from torch import nn
        from curlfx.coupling import couple
        from curlfx.graph import trace
        from curlfx.planning.fingerprint import Fingerprint
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        graph = trace(net, (torch.randn(2, 3, 8, 8),))
        print(Fingerprint.of(graph, couple(graph)).sha256)
    """
    found = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert found.stdout.strip() == fingerprint(traced(net)).sha256


@pytest.mark.parametrize(
    ("plans", "here"),
    [((2, True), (3, False)), ((3, False), (2, True)), ((2, False), (3, False)), ((3, False), (4, False))],
)
def test_fixed_and_free_batches_are_alike(plans: tuple[int, bool], here: tuple[int, bool]) -> None:
    wanted, found = (traced(Cut(), (batch, 5, 12), dynamic) for batch, dynamic in (plans, here))
    for graph, (batch, dynamic) in ((wanted, plans), (found, here)):
        assert structure(graph).batch == (None if dynamic else batch)
    assert fingerprint(wanted).difference(found, couple(found)) is None


ADDS = r"after second \(aten\.conv2d\) comes aten\.add\.Tensor in the plan's network, aten\.mul\.Tensor here"
SCALES = (
    r"after a call \(aten\.add\.Tensor\) comes aten\.mul\.Tensor\(%4, 2\.0\) in the plan's network, .*\(%4, 3\.0\) here"
)
STRIDES = r"at the start comes aten\.conv2d\(.*\[1, 1\], \[1, 1\]\) in the plan's network, .*\[2, 2\], \[1, 1\]\) here"
LINE = r" \(planning/test_fingerprint\.py:\d+\)"


@pytest.mark.parametrize(
    ("other", "message"),
    [(Joined("mul"), ADDS + LINE), (Joined(scale=3.0), SCALES + LINE), (Joined(stride=2), STRIDES + LINE)],
)
def test_the_first_other_op_is_named(other: nn.Module, message: str) -> None:
    graph = traced(other)
    found = fingerprint(traced(Joined())).difference(graph, couple(graph))
    assert found is not None
    assert re.fullmatch(message, found), found


def test_other_images_are_named() -> None:
    other = traced(Joined(), (2, 3, 6, 6))
    found = fingerprint(traced(Joined())).difference(other)
    assert found == "input 0 is [N, 3, 8, 8] in the plan's network, [N, 3, 6, 6] here"


def test_a_network_that_goes_on() -> None:
    short, long = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
    assert fingerprint(traced(short)).difference(traced(long)) == (
        "after 0 (aten.conv2d) comes return in the plan's network, aten.sigmoid here"
    )


def test_index_tables_are_part_of_it() -> None:
    other = traced(Cut(table=True), (2, 5, 12))
    found = fingerprint(traced(Cut(), (2, 5, 12))).difference(other)
    assert found is not None
    assert re.match(r"after .* comes aten\.index_select\(%\d+, 1, order#\w+\) in the plan's network, ", found)


def test_coupling_groups_are_part_of_it() -> None:
    graph = traced(Joined())
    found = fingerprint(graph).difference(graph, couple(graph, frozen=["first"]))
    assert found == "it has no coupling group 'first.weight'"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIXTURES)[::5])
def test_a_fixture_is_like_itself_and_unlike_the_next(name: str) -> None:
    case = FIXTURES[name]
    graph = trace(case.build(), case.inputs(), dynamic_batch=case.dynamic)
    found = fingerprint(graph)
    assert found.difference(graph, couple(graph)) is None
    assert Fingerprint.model_validate_json(found.model_dump_json()) == found
    assert not any("\n" in line for line in found.ops)
    other = FIXTURES[next(key for key in FIXTURES if key != name)]
    assert found.difference(trace(other.build(), other.inputs(), dynamic_batch=other.dynamic)) is not None
