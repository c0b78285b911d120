"""`ExpandLinear` leaves the function as it is, `ContractLinear` brings the network back, whatever the training did."""

from __future__ import annotations

import copy
from dataclasses import replace
from textwrap import dedent

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curlfx.deploy import export_onnx
from curlfx.errors import UsageError, VerificationError
from curlfx.graph import TracedModel, show, trace
from curlfx.models.resnet_cifar import resnet20
from curlfx.passes.contract_linear import ContractLinear, blocks
from curlfx.passes.expand_linear import ExpandLinear
from curlfx.passes.factors import INITIALISATIONS
from curlfx.passes.pipeline import run
from tests.graph.networks import Small, randomise
from tests.networks.strategies import networks

ALL = ("*",)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Product(nn.Module):
    """Layers written as products: mm, addmm and matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*size)) for size in ((6, 5), (5, 4), (4, 3)))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(self.bias, torch.mm(x, self.a), self.b, beta=0.5, alpha=2.0)) @ self.c


class Shared(nn.Module):
    """One weight in two layers of different strides, two names for one weight, and one that is also added."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(x))
        x = nn.functional.conv2d(x, self.twice.weight, None, 2, 1)
        x = self.read(x) + self.read.weight.sum()
        return self.head(self.other(torch.relu(self.one(x.mean((2, 3))))))


def double(model: nn.Module, *shape: int) -> tuple[TracedModel, Tensor]:
    model = randomise(model.double()).eval()
    return trace(model, torch.randn(2, *shape, dtype=torch.float64)), torch.randn(3, *shape, dtype=torch.float64)


def perturb(network: TracedModel, size: float = 0.3) -> TracedModel:
    """Another network of the same graph: every parameter moved at random, as by a training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network


def assert_there_and_back(traced: TracedModel, x: Tensor, wanted: ExpandLinear) -> None:
    before, text, weights = traced.module(x), show(traced), traced.module.state_dict()
    expanded = wanted(traced)
    torch.testing.assert_close(expanded.module(x), before, **EXACT)
    restored = ContractLinear()(expanded)
    assert show(restored) == text == show(traced)
    assert list(restored.module.state_dict()) == list(weights)
    for name, tensor in restored.module.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], **EXACT)
    perturb(expanded)
    contracted = ContractLinear()(expanded)
    torch.testing.assert_close(contracted.module(x), expanded.module(x), **EXACT)
    assert {name: t.shape for name, t in contracted.module.state_dict().items()} == {
        name: t.shape for name, t in weights.items()
    }
    assert (contracted.module(x) - before).abs().max() > 1e-3


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer of any kind, and the shape of an image for it."""
    kind = draw(st.sampled_from(["conv", "conv", "transposed", "linear"]))
    bias = draw(st.booleans())
    if kind == "linear":
        return nn.Linear(draw(st.integers(1, 6)), draw(st.integers(1, 6)), bias), (*draw(st.sampled_from([(), (3,)])),)
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    if draw(st.booleans()):  # depthwise, with a multiplier
        groups = into
        out = into * draw(st.integers(1, 2))
    kernel, stride = draw(st.sampled_from([1, 2, 3, 5])), draw(st.integers(1, 2))
    dilation, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    shape = (into, *[dilation * (kernel - 1) + 2] * axes)
    if kind == "transposed":
        made = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        padding = min(padding, dilation * (kernel - 1) // 2)
        return made(into, out, kernel, stride, padding, stride - 1, groups, bias, dilation), shape
    made = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
    where = draw(st.sampled_from([padding, padding, "same"])) if stride == 1 else padding
    return made(into, out, kernel, stride, where, dilation, groups, bias, mode), shape


@pytest.mark.slow
@given(layers(), st.sampled_from([2, 4]), st.sampled_from(INITIALISATIONS), st.sampled_from(["features", "weights"]))
@settings(max_examples=40, deadline=None)
def test_any_layer_there_and_back(layer, rate, init, compute):
    module, shape = layer
    if isinstance(module, nn.Linear):
        shape = (*shape, module.in_features)
    torch.manual_seed(0)
    traced, x = double(nn.Sequential(module, nn.Tanh()), *shape)
    assert_there_and_back(traced, x, ExpandLinear(rate=rate, layers=ALL, init=init, compute=compute))


@pytest.mark.parametrize("compute", ["features", "weights"])
def test_products_there_and_back(compute):
    traced, x = double(Product(), 6)
    wanted = ExpandLinear(rate=3, layers=ALL, compute=compute)
    assert_there_and_back(traced, x, wanted)
    assert len(blocks(wanted(traced))) == 3


@pytest.mark.parametrize("compute", ["features", "weights"])
def test_a_shared_weight_is_expanded_once(compute):
    traced, x = double(Shared(), 4, 6, 6)
    expanded = ExpandLinear(rate=2, compute=compute)(traced)
    assert [names.m for names in blocks(expanded)] == ["twice.weight_M", "one.weight_M"]
    torch.testing.assert_close(expanded.module(x), traced.module(x), **EXACT)
    contracted = ContractLinear()(perturb(expanded))
    torch.testing.assert_close(contracted.module(x), expanded.module(x), **EXACT)
    assert list(contracted.module.state_dict()) == list(traced.module.state_dict())
    assert contracted.parameter("one.weight") is contracted.parameter("other.weight")
    with pytest.raises(UsageError, match=r"'read\.weight' cannot be expanded: node 'sum_1' reads it too"):
        ExpandLinear(layers=("read",))(traced)


def test_golden():
    traced = trace(Small(), torch.randn(1, 3, 6, 6))
    expanded = ExpandLinear(rate=2, compute="features")(traced)
    assert show(expanded) == dedent("""\
        %conv.weight_M = parameter : f32[8, 6, 3, 3]
        %conv.weight_A = parameter : f32[6, 3, 1, 1]
        %conv.weight_B = parameter : f32[4, 8, 1, 1]
        %bn.weight = parameter : f32[4]
        %bn.bias = parameter : f32[4]
        %fc.weight = parameter : f32[2, 4]
        %fc.bias = parameter : f32[2]
        %bn.running_mean = buffer : f32[4]
        %bn.running_var = buffer : f32[4]
        %x = input : f32[2, 3, 6, 6]
        %conv2d_default = aten.conv2d.default(%x, %conv.weight_A, None, [1, 1], [0, 0], [1, 1], 1) : f32[2, 6, 6, 6]
        %conv2d_default_1 = aten.conv2d.default(%conv2d_default, %conv.weight_M, None, [1, 1], [1, 1]) : f32[2, 8, 6, 6]
        %conv2d = aten.conv2d.default(%conv2d_default_1, %conv.weight_B, None, [1, 1], [0, 0], [1, 1], 1) : f32[2, 4, 6, 6]
        %batch_norm = aten.batch_norm.default(%conv2d, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var, False, 0.1, 1e-05, True) : f32[2, 4, 6, 6]
        %relu = aten.relu.default(%batch_norm) : f32[2, 4, 6, 6]
        %mean = aten.mean.dim(%relu, [2, 3]) : f32[2, 4]
        %dropout = aten.dropout.default(%mean, 0.25, False) : f32[2, 4]
        %linear = aten.linear.default(%dropout, %fc.weight, %fc.bias) : f32[2, 2]
        return (%linear,)""")  # noqa: E501 - one node, one line
    assert list(expanded.module.state_dict())[:3] == ["conv.weight_A", "conv.weight_M", "conv.weight_B"]


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_parameters_by_formula(init):
    rate, groups, i, o, k = 3, 2, 4, 5, 9
    traced, _ = double(nn.Sequential(nn.Conv2d(groups * i, groups * o, 3, groups=groups, bias=False)), 8, 5, 5)
    expanded = ExpandLinear(rate=rate, layers=ALL, init=init)(traced)
    counts = {name[-1]: tensor.numel() for name, tensor in expanded.module.named_parameters()}
    assert counts == {"A": groups * rate * i * i, "M": groups * rate**2 * i * o * k, "B": groups * rate * o * o}
    a, m, b = (expanded.parameter(f"0.weight_{one}") for one in "AMB")
    if init == "semi_orthogonal":
        columns, rows = a.reshape(groups, -1, i), b.reshape(groups, o, -1)
        torch.testing.assert_close(columns.mT @ columns, torch.eye(i).double().expand(groups, -1, -1), **EXACT)
        torch.testing.assert_close(rows @ rows.mT, torch.eye(o).double().expand(groups, -1, -1), **EXACT)
        torch.testing.assert_close(m.norm(), traced.parameter("0.weight").norm(), **EXACT)


def test_hand_numbers():
    """One channel in, one out, rate 2: W = sum over q, p of B[q] M[q, p] A[p]."""
    traced, x = double(nn.Sequential(nn.Conv1d(1, 1, 1, bias=False)), 1, 4)
    expanded = ExpandLinear(rate=2, layers=ALL)(traced)
    values = {"A": [[[2.0]], [[3.0]]], "M": [[[1.0], [0.5]], [[-1.0], [4.0]]], "B": [[[1.0], [10.0]]]}
    for name, value in values.items():
        expanded.set_parameter(f"0.weight_{name}", torch.tensor(value).double())
    assert ContractLinear()(expanded).parameter("0.weight").item() == pytest.approx(2 + 1.5 + 10 * (-2 + 12))
    torch.testing.assert_close(expanded.module(x), 103.5 * x, **EXACT)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose1d(3, 4, 3), nn.Linear(6, 4)])
@pytest.mark.parametrize("compute", ["features", "weights"])
def test_a_step_on_m_alone_is_a_step_on_the_weight(layer, compute):
    shape = {nn.Linear: (6,), nn.Conv2d: (6, 5, 5), nn.ConvTranspose1d: (3, 5)}[type(layer)]
    traced, x = double(nn.Sequential(layer), *shape)
    expanded = ExpandLinear(layers=ALL, compute=compute)(traced)
    for network, name in ((traced, "0.weight"), (expanded, "0.weight_M")):
        (network.module(x) ** 2).sum().backward()
        with torch.no_grad():
            network.parameter(name).sub_(1e-2 * network.parameter(name).grad)
    found = ContractLinear()(expanded).parameter("0.weight")
    torch.testing.assert_close(found, traced.parameter("0.weight"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("init", INITIALISATIONS)
@pytest.mark.parametrize("groups", [1, 4])
def test_every_slice_gets_a_gradient(init, groups):
    traced, x = double(nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups), nn.Tanh()), 4, 5, 5)
    expanded = ExpandLinear(layers=ALL, init=init)(traced)
    (expanded.module(x) ** 2).sum().backward()
    for name, parameter in expanded.module.named_parameters():
        if name.endswith("bias") or (init == "noise_pad" and not name.endswith("_M")):
            continue  # the noise of A and B moves from the second step on: M is 0 there at first
        assert parameter.grad is not None
        for axis in range(2):
            assert bool((parameter.grad.transpose(0, axis).flatten(1).abs().amax(1) > 0).all()), (name, axis)


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("mobilenet_v3_small", "shufflenet_v2_x0_5")),
    ],
)
def test_networks(name):
    model = resnet20() if name == "resnet20" else torchvision.models.get_model(name, weights=None)
    traced, x = double(model, 3, 32, 32)
    expanded = ExpandLinear(rate=2)(traced)
    torch.testing.assert_close(expanded.module(x), traced.module(x), rtol=1e-9, atol=1e-9)
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())
    assert len(blocks(expanded)) == layers - 1
    contracted = ContractLinear()(perturb(expanded, 0.02))
    torch.testing.assert_close(contracted.module(x), expanded.module(x), rtol=1e-9, atol=1e-9)
    assert show(contracted) == show(traced)


@pytest.mark.nightly
@given(networks(max_depth=5), st.sampled_from(["weights", "features", "auto"]))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_networks(recipe, compute):
    traced = trace(recipe.build(), recipe.inputs())
    expanded = ExpandLinear(rate=2, compute=compute)(traced)
    assert_equal_outputs(expanded, traced)
    contracted = ContractLinear()(perturb(expanded, 0.02))
    assert_equal_outputs(contracted, expanded)
    assert show(contracted) == show(traced)
    assert list(contracted.module.state_dict()) == list(traced.module.state_dict())


@torch.no_grad()
def assert_equal_outputs(found: TracedModel, wanted: TracedModel) -> None:
    pairs = zip(*(pytree.tree_leaves(one.module(*wanted.example_inputs)) for one in (found, wanted)), strict=True)
    for one, other in pairs:
        scale = float(other.abs().max()) or 1.0
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-9)


def test_single_precision_and_half():
    x = torch.randn(3, 3, 6, 6)
    traced = trace(randomise(Small()).eval(), x)
    expanded = ExpandLinear(layers=ALL)(traced)
    torch.testing.assert_close(expanded.module(x), traced.module(x), rtol=1e-5, atol=1e-5)
    half = ExpandLinear(layers=ALL)(copy.deepcopy(traced).to(torch.bfloat16))
    contracted = ContractLinear()(half)
    assert {p.dtype for p in contracted.module.parameters()} == {torch.bfloat16}
    for network in (half, contracted):
        torch.testing.assert_close(network.to(torch.float32).module(x), traced.module(x), rtol=5e-2, atol=5e-2)


def test_a_training_step_keeps_modes_and_statistics():
    """Batch normalisation behind the block is untouched, and train() and eval() work on the expanded network."""
    torch.manual_seed(0)
    traced, x = double(Small(), 3, 6, 6)
    expanded = ExpandLinear()(traced)
    for network in (traced, expanded):
        network.module.train()
        torch.manual_seed(0)
        network.module(x)
        network.module.eval()
    for name in ("bn.running_mean", "bn.num_batches_tracked"):
        torch.testing.assert_close(expanded.parameter(name), traced.parameter(name), **EXACT)


def test_auto_takes_what_is_cheaper():
    """Weights are multiplied where positions are many, features pass three layers where they are few."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 256), nn.Linear(256, 2))
    traced, _ = double(model, 4, 16, 16)
    text = show(ExpandLinear(batch_size=4)(traced))
    assert text.count("compose(") == 1
    assert "compose(%0.weight_A" in text
    assert show(ExpandLinear(batch_size=100_000)(traced)).count("compose(") == 2


@pytest.mark.slow
def test_exported_file_is_that_of_the_slim_network(tmp_path):
    traced, _ = double(Small(), 3, 6, 6)
    traced = traced.to(torch.float32)
    contracted = ContractLinear()(perturb(ExpandLinear()(traced)))

    def outline(network: TracedModel) -> list[object]:
        import onnx

        path = tmp_path / "network.onnx"
        export_onnx(network.module, network.example_inputs, path)
        graph = onnx.load(path).graph
        nodes = [(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node]
        return [nodes, sorted((one.name, tuple(one.dims)) for one in graph.initializer)]

    assert outline(contracted) == outline(traced)


def test_nothing_to_expand_is_no_change():
    traced, _ = double(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 4)
    for each in (ExpandLinear(), ContractLinear()):
        assert not run(traced, [each])[1][0].changed


def test_the_seed_decides():
    traced, _ = double(Small(), 3, 6, 6)
    first, again, other = (ExpandLinear(seed=seed)(traced).parameter("conv.weight_A") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate = 0: want 1 or more"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"init": "zeros"}, "init = 'zeros': want one of semi_orthogonal, pinv, noise_pad"),
        ({"compute": "both"}, "compute = 'both': want one of auto, weights, features"),
        ({"layers": ("covn",)}, "'covn' names no convolution or linear layer of the network; did you mean 'conv'"),
        ({"layers": "conv"}, r"layers = 'conv': want a tuple of names, like \('conv',\)"),
        ({"layers": ("bn",)}, "'bn' names no convolution or linear layer"),
    ],
)
def test_refuses(options, message):
    traced, _ = double(Small(), 3, 6, 6)
    with pytest.raises(UsageError, match=message):
        replace(ExpandLinear(), **options)(traced)


@pytest.mark.parametrize("kind", ["parameter", "buffer", "module"])
def test_refuses_names_that_are_taken(kind):
    model = Small().double()
    traced, _ = double(model, 3, 6, 6)
    add = {
        "parameter": lambda: traced.add_parameter("conv.weight_A", torch.ones(1)),
        "buffer": lambda: traced.add_buffer("conv.weight_A", torch.ones(1)),
        "module": lambda: traced.add_buffer("conv.weight_A.mean", torch.ones(1)),
    }
    add[kind]()
    with pytest.raises(UsageError, match=rf"'conv\.weight_A' is taken already, by a {kind}"):
        ExpandLinear()(traced)


def test_refuses_what_is_not_trained_and_a_second_time():
    traced, _ = double(Small(), 3, 6, 6)
    with pytest.raises(UsageError, match="the network is expanded already; contract it first"):
        ExpandLinear()(ExpandLinear()(traced))
    traced.parameter("conv.weight").requires_grad_(False)
    with pytest.raises(UsageError, match="it is not trained"):
        ExpandLinear(layers=("conv",))(traced)


def test_weights_that_are_not_finite_are_found():
    traced, _ = double(Small(), 3, 6, 6)
    expanded = ExpandLinear()(traced)
    expanded.parameter("conv.weight_A").data[0] = float("nan")
    with pytest.raises(VerificationError, match=r"contract-linear: outputs before and after differ by nan"):
        ContractLinear()(expanded)


class Heads(Small):
    """Two outputs, each of a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn(self.conv(x)))
        return self.one(x), self.other(x)


@pytest.mark.parametrize("head", ["one", "other"])
def test_one_output_of_two_that_is_not_finite_is_found(head):
    traced, _ = double(Heads(), 3, 6, 6)
    expanded = ExpandLinear(layers=("one", "other"))(traced)
    expanded.parameter(f"{head}.weight_A").data[0] = float("nan")
    with pytest.raises(VerificationError, match=r"differ by nan"):
        ContractLinear()(expanded)
