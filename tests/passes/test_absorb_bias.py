"""`AbsorbBias`: silent channels go without a trace; what cannot be moved is named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.trial import random_keep, randomise, relative_error
from curlfx.coupling import Coupling, couple
from curlfx.errors import KeepError, UsageError
from curlfx.graph import TracedModel, show, trace
from curlfx.ops.call import named_arguments
from curlfx.passes.absorb_bias import AbsorbBias, absorption
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from tests.networks.fixtures import FIXTURES
from tests.networks.strategies import Choose, draw_keep, draw_recipe
from tests.oracles import Keep

EXACT = 1e-12
PRODUCERS = ("aten::conv", "aten::linear")


def silenced(traced: TracedModel, coupling: Coupling, keep: Keep) -> TracedModel:
    """The network with zero scales and zero weights for everything that makes a removed channel.

    So these channels are constant: shifts of normalisations and biases are all that they emit.
    """
    alive = coupling.cells.alive(coupling.alive(keep))
    changed: dict[str, Tensor] = {}
    for node in traced.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        name = "" if schema is None else schema.name
        weight = named_arguments(node).get("weight") if schema else None
        if weight is None or weight.op != "get_attr" or not (name.startswith(PRODUCERS) or name.endswith("_norm")):
            continue
        axis = 1 if name.startswith("aten::conv_transpose") else 0
        tensor = changed.get(str(weight.target), traced.parameter(str(weight.target)).detach())
        for array in coupling.parameter_labels(str(weight.target)):
            ending = max((a for a, size in enumerate(array.shape) if size > 1), default=-1)
            if ending == axis or tensor.ndim == 1:
                gone = torch.from_numpy(np.broadcast_to(~alive[array], tensor.shape).copy())
                tensor = tensor.masked_fill(gone, 0)
        changed[str(weight.target)] = tensor
    result = traced.clone()
    result.set_parameters(changed)
    return result


def slimmed(traced: TracedModel, coupling: Coupling, keep: Keep, borders: str = "exact") -> TracedModel:
    return run(traced, [AbsorbBias(coupling, keep, borders), Slim(coupling, keep)])[0]


def error(one: TracedModel, other: TracedModel, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        return relative_error(one.module.eval()(*inputs), other.module.eval()(*inputs))


def prepared(module: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[TracedModel, Coupling, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.float64)
    traced = trace(randomise(module.double(), 1).eval(), (x,))
    return traced, couple(traced), x


def half(coupling: Coupling) -> Keep:
    return {group.id: tuple(range(0, group.width, 2)) for group in coupling.groups if group.width > 1}


class Block(nn.Module):
    """A residual block with squeeze and excitation, without padding inside, its head after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.expand, self.norm1 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Linear(12, 6), nn.Linear(6, 12)
        self.project, self.norm3 = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.nn.functional.silu(self.norm1(self.expand(x)))
        y = torch.nn.functional.hardswish(self.norm2(self.deep(y)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3))))))
        x = torch.relu_(x + self.norm3(self.project(y * gate[:, :, None, None])))
        return self.fc(torch.nn.functional.avg_pool2d(x, 2).flatten(1))


def test_silent_channels_of_a_whole_block_go_without_a_trace() -> None:
    traced, coupling, x = prepared(Block())
    keep = half(coupling)
    assert len(keep) == 3
    dense = silenced(traced, coupling, keep)
    assert absorption(dense, coupling, keep).refused == ()
    assert error(slimmed(dense, coupling, keep), dense, (x,)) <= EXACT
    assert error(run(dense, [Slim(coupling, keep)])[0], dense, (x,)) > 1e-2


def test_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 2)
    )
    traced, coupling, _ = prepared(net)
    with torch.no_grad():
        net[1].weight[1], net[1].bias[1] = 0.0, 0.7
        traced.set_parameters({"1.weight": net[1].weight, "1.bias": net[1].bias})
    keep = {"0.weight": (0,)}
    after = slimmed(traced, coupling, keep)
    want = net[3].bias + 0.7 * net[3].weight[:, 1].sum((1, 2))
    torch.testing.assert_close(after.parameter("3.bias"), want.detach(), rtol=1e-14, atol=0)
    assert list(after.module.state_dict()) == list(traced.module.state_dict())


def test_without_a_bias_the_running_mean_takes_the_shift() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 8)
    )
    traced, coupling, x = prepared(net)
    keep = {"0.weight": (1, 2)}
    dense = silenced(traced, coupling, keep)
    after = slimmed(dense, coupling, keep)
    lost = nn.functional.gelu(net[0].bias[[0, 3]]) @ net[2].weight[:, [0, 3], 0, 0].T
    torch.testing.assert_close(
        after.parameter("3.running_mean"), (net[3].running_mean - lost).detach(), rtol=1e-13, atol=0
    )
    assert error(after, dense, (x,)) <= EXACT
    assert list(after.module.state_dict()) == list(dense.module.state_dict())


def test_other_channels_leave_their_mean_behind() -> None:
    """Scales that are not 0: the shift of the normalisation takes the channel's place."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    traced, coupling, _ = prepared(net)
    after = slimmed(traced, coupling, {"0.weight": (0, 3)})
    want = net[3].bias + net[3].weight[:, [1, 2], 0, 0] @ torch.sigmoid(net[1].bias[[1, 2]])
    torch.testing.assert_close(after.parameter("3.bias"), want.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.ELU])
def test_activations_in_place(activation: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), activation(inplace=True), nn.Conv2d(4, 2, 1))
    traced, coupling, x = prepared(net)
    keep = {"0.weight": (1, 3)}
    dense = silenced(traced, coupling, keep)
    assert error(slimmed(dense, coupling, keep), dense, (x,)) <= EXACT


class Moved(nn.Module):
    """Reads its channels at places that the image says, or adds noise to them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.first(x))
        if self.kind == "noise":
            return self.last(y + torch.rand(1, 4, 8, 8, dtype=y.dtype))
        places = x[:, :2].movedim(1, 3)
        return self.last(nn.functional.grid_sample(y, places, align_corners=False))


@pytest.mark.parametrize("kind", ["places", "noise"])
def test_what_hangs_on_the_image_or_on_chance_is_no_constant(kind: str) -> None:
    traced, coupling, _ = prepared(Moved(kind))
    keep = {"first.weight": (1, 2, 3)}
    found = absorption(silenced(traced, coupling, keep), coupling, keep)
    assert found.shifts == {}
    assert [refusal.reason for refusal in found.refused] == ["it depends on the images"]


def padded(mode: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1, padding_mode=mode))


def test_zero_padding_is_refused_or_met_by_the_mean() -> None:
    net = padded("zeros")
    traced, coupling, x = prepared(net)
    keep = {"0.weight": (0, 1)}
    dense = silenced(traced, coupling, keep)
    found = absorption(dense, coupling, keep)
    assert found.shifts == {}
    (refusal,) = found.refused
    assert (refusal.reader, refusal.channels) == ("conv2d_1", 2)
    assert str(refusal).startswith(
        "node 'conv2d_1' loses what 2 channels of 'sigmoid' emit: it differs between positions"
    )
    plain, bare = run(dense, [AbsorbBias(coupling, keep), Slim(coupling, keep)])
    assert [record.changed for record in bare] == [False, True]
    with torch.no_grad():
        missing = (dense.module(x) - plain.module(x)).mean((0, 2, 3))
        after = slimmed(dense, coupling, keep, "mean")
        torch.testing.assert_close(after.parameter("2.bias") - net[2].bias, missing, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_the_image_itself_is_exact(mode: str) -> None:
    traced, coupling, x = prepared(padded(mode))
    keep = {"0.weight": (3,)}
    dense = silenced(traced, coupling, keep)
    assert absorption(dense, coupling, keep).refused == ()
    assert error(slimmed(dense, coupling, keep), dense, (x,)) <= EXACT


class TiedHeads(nn.Module):
    """Two layers with the same bias; a product of two feature maps; a map that scales all channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1)
        self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        if kind == "tied":
            self.two.bias = self.one.bias
        if kind == "bare":
            self.one = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.first(x))
        if self.kind == "scaled":
            return self.one(y * torch.relu(self.other(x)))
        if self.kind == "gram":
            flat = y.flatten(2)
            return flat.transpose(1, 2) @ flat
        return self.one(y) + self.two(y) if self.kind == "tied" else self.one(y)


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("tied", ["it has no bias of its own", "it has no bias of its own"]),
        ("bare", ["it has no bias of its own"]),
        ("scaled", ["it depends on the images"]),
        ("gram", ["it is no convolution or linear layer", "it is no convolution or linear layer"]),
    ],
)
def test_what_cannot_be_moved_is_named(kind: str, reasons: list[str]) -> None:
    traced, coupling, _ = prepared(TiedHeads(kind))
    found = absorption(traced, coupling, {"first.weight": (0, 2)})
    assert found.shifts == {}
    assert [refusal.channels for refusal in found.refused] == [2] * len(reasons)
    for refusal, reason in zip(found.refused, reasons, strict=True):
        assert refusal.reason.startswith(reason)


def test_nothing_to_absorb_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    traced, coupling, _ = prepared(net)
    with torch.no_grad():
        traced.set_parameters({"0.bias": -net[0].bias.abs()})
    text = show(traced)
    for keep in ({}, {"0.weight": (0,)}):
        _, (record,) = run(traced, [AbsorbBias(coupling, keep)])
        assert not record.changed
    assert show(traced) == text


def test_refusals() -> None:
    traced, coupling, _ = prepared(padded("zeros"))
    with pytest.raises(KeepError, match="keep"):
        AbsorbBias(coupling, {"0.weight": (4,)})(traced)
    traced.module.train()
    with pytest.raises(UsageError, match="training mode"):
        AbsorbBias(coupling, {"0.weight": (0,)})(traced)
    traced.module.eval()
    with pytest.raises(UsageError, match="no weights"):
        AbsorbBias(coupling, {"0.weight": (0,)})(traced.to("meta"))


def check(traced: TracedModel, inputs: tuple[Tensor, ...], choose: Choose) -> str:
    """Silence what goes, remove it, and compare wherever everything could be moved; says what was seen."""
    coupling = couple(traced)
    keep = draw_keep(choose, coupling.groups)
    if any(group.statistics_change for group in coupling.groups if group.id in keep):
        return "statistics change"
    dense = silenced(traced, coupling, keep)
    found = absorption(dense, coupling, keep)
    if found.refused:
        return "refused"
    off = error(slimmed(dense, coupling, keep), dense, inputs)
    assert off <= EXACT, f"off by {off:.1e}; keep {dict(keep)}"
    return "exact with shifts" if found.shifts else "nothing emitted"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(name: str) -> None:
    traced, coupling, x = prepared(torchvision.models.get_model(name, weights=None), (3, 64, 64))
    keep = random_keep(coupling.groups, 0.5, seed=1)
    dense = silenced(traced, coupling, keep)
    assert absorption(dense, coupling, keep).refused == ()
    assert error(slimmed(dense, coupling, keep), dense, (x,)) <= EXACT
    assert error(run(dense, [Slim(coupling, keep)])[0], dense, (x,)) > 0.1


def chooser(seed: int) -> Choose:
    generator = np.random.default_rng(seed)

    def choose(values: Sequence[Any]) -> Any:
        kernels = values[1:] if tuple(values) == (3, 1) else values
        exact = [value for value in kernels if value not in INEXACT]
        return exact[int(generator.integers(len(exact)))]

    return choose


INEXACT = ("instance", "group", "layer", "whole", "zeros", "dilated")
"""Normalisations across channels, and zero padding: what is removed changes more than a constant."""


@pytest.mark.slow
def test_fixtures() -> None:
    cases = [case for case in FIXTURES.values() if not case.statistics]
    found = [(trace(case.build(), case.inputs(), dynamic_batch=case.dynamic), case.inputs()) for case in cases[::3]]
    seen = [check(traced, inputs, chooser(seed)) for seed, (traced, inputs) in enumerate(found)]
    assert seen.count("exact with shifts") >= 5


@pytest.mark.slow
def test_composed_networks() -> None:
    seen = []
    for seed in range(20):
        choose = chooser(seed)
        recipe = draw_recipe(choose, max_depth=2)
        seen.append(check(trace(recipe.build(), recipe.inputs()), recipe.inputs(3), choose))
    assert seen.count("exact with shifts") >= 3
