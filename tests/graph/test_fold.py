"""Weights computed from parameters become parameters; everything else stays as the user wrote it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks.trial import random_keep, relative_error
from curlfx.deploy import export_onnx
from curlfx.graph import show, trace
from tests.networks.fixtures import FIXTURES
from tests.networks.net import IMAGE, Net, dense, drawn, pointwise, prepared, weight
from tests.networks.statistics import NormedConv, StandardisedConv
from tests.oracles import Laboratory, train_a_step
from tests.properties.invariants import TOLERANCE, evaluate, slim_equals_gated


def traced_twice(net, inputs=None):
    """The network traced with and without folding, in float64; both compute what it does."""
    net = prepared(net)
    inputs = drawn(IMAGE) if inputs is None else inputs
    folded, plain = trace(net, inputs), trace(net, inputs, fold_weights=False)
    for traced in (folded, plain):
        assert relative_error(evaluate(traced.module, inputs), evaluate(net, inputs)) <= 1e-12
    return folded, plain


def names(traced):
    return set(traced.module.state_dict())


def is_noted(traced):
    return any(note.startswith("weights that are computed") for note in traced.notes)


def conv(function, **layers):
    """``h(conv(image, function(net)))``."""
    return Net(lambda m, x: m.h(functional.conv2d(x, function(m))), h=pointwise(8, 2), **layers)


def normalised(w):
    return w / w.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in w.shape[1:]))


# Network -> parameters that are there after folding.
FOLDED = {
    "standardised": (lambda: nn.Sequential(StandardisedConv(3, 4)), {"0.weight", "0.bias"}),
    "standardised_with_gain": (lambda: nn.Sequential(StandardisedConv(3, 4, scaled=True)), {"0.weight", "0.bias"}),
    "weight_norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1))), {"0.weight", "0.bias"}),
    "weight_norm_by_hooks": (
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 1))),
        {"0.weight", "0.bias"},
    ),
    "spectral_norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 1))),
        {"0.weight", "0.bias"},
    ),
    "spectral_norm_by_hooks": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 1))),
        {"0.weight", "0.bias"},
    ),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Conv2d(3, 4, 3))), {"0.weight", "0.bias"}),
    "by_hand": (lambda: nn.Sequential(NormedConv(3, 4)), {"0.direction"}),
    "low_rank_update": (
        lambda: conv(
            lambda m: m.w + (m.b @ m.a)[..., None, None], w=weight(8, 3, 1, 1), a=weight(2, 3), b=weight(8, 2)
        ),
        {"w", "h.weight"},
    ),
    "of_another_shape": (
        lambda: conv(lambda m: (m.b @ m.a)[..., None, None], a=weight(2, 3), b=weight(8, 2)),
        {"weight", "h.weight"},
    ),
    "name_is_taken": (
        lambda: Net(
            lambda m, x: m.h(functional.conv2d(x, (m.b @ m.a)[..., None, None])) * m.weight.mean(),
            a=weight(2, 3),
            b=weight(8, 2),
            weight=weight(2, 1, 1),
            h=pointwise(8, 2),
        ),
        {"weight", "h.weight", "b_folded"},
    ),
    "made_by_layers": (
        lambda: conv(lambda m: m.f(m.codes).reshape(8, 3, 1, 1), f=nn.Linear(2, 3), codes=torch.randn(8, 2)),
        {"weight", "h.weight"},
    ),
    "of_a_scale": (
        lambda: Net(
            lambda m, x: m.h(m.a(x) * (m.s / m.s.sum())), a=pointwise(3, 8), h=pointwise(8, 2), s=weight(8, 1, 1)
        ),
        {"a.weight", "h.weight", "s"},
    ),
    "of_a_matrix_product": (
        lambda: Net(lambda m, x: x.flatten(2).mT @ normalised(m.w).mT, w=weight(5, 3)),
        {"w"},
    ),
    "read_as_it_is_too": (
        lambda: Net(
            lambda m, x: functional.conv2d(x, m.w) + functional.conv2d(x, normalised(m.w)), w=weight(8, 3, 1, 1)
        ),
        {"w", "weight"},
    ),
    "in_two_ways": (
        lambda: Net(
            lambda m, x: functional.conv2d(x, normalised(m.w)) + functional.conv2d(x, m.w - m.w.mean(0)),
            w=weight(8, 3, 1, 1),
        ),
        {"w", "weight"},
    ),
    "cut_in_three": (
        lambda: Net(
            lambda m, x: sum(functional.conv2d(x, part) for part in normalised(m.w).chunk(3)), w=weight(6, 3, 1, 1)
        ),
        {"w"},
    ),
    "one_as_it_is_one_turned": (
        lambda: Net(
            lambda m, x: functional.linear(functional.linear(x.mean((2, 3)), w := normalised(m.w)), w.mT),
            w=weight(5, 3),
        ),
        {"w"},
    ),
}


@pytest.mark.filterwarnings("ignore:.*nn.utils.weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", FOLDED)
def test_folded(name):
    factory, want = FOLDED[name]
    folded, plain = traced_twice(factory())
    assert names(folded) == want
    assert is_noted(folded)
    assert not is_noted(plain)
    assert all(isinstance(folded.parameter(found), nn.Parameter) for found in want)
    assert {str(node.target) for node in folded.graph.find_nodes(op="get_attr")} == want


# What a network computes without inputs, and may go on computing.
LEFT = {
    "gain": lambda: conv(lambda m: m.w * m.g.exp(), w=weight(8, 3, 1, 1), g=weight(8, 1, 1, 1)),
    "permutation": lambda: conv(lambda m: m.w.permute(1, 0, 2, 3).flip(0), w=weight(3, 8, 1, 1)),
    "looked_up": lambda: conv(lambda m: m.w[m.i], w=weight(4, 3, 1, 1), i=torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])),
    "constant": lambda: conv(lambda m: m.w - m.w.mean(0), w=torch.randn(8, 3, 1, 1)),
    "constant_factor": lambda: conv(lambda m: m.w * m.mask.sum(), w=weight(8, 3, 1, 1), mask=torch.ones(3)),
    "one_number": lambda: conv(lambda m: m.w, w=weight(8, 3, 1, 1)),
    "scale_that_is_one_number": lambda: Net(lambda m, x: m.a(x) * m.s.softmax(0)[0], a=pointwise(3, 8), s=weight(3)),
    "position_mlp": lambda: Net(
        lambda m, x: m.a(x) + m.g(torch.relu(m.f(m.table))).mT.reshape(8, 4, 4),
        a=pointwise(3, 8), f=nn.Linear(2, 5), g=nn.Linear(5, 8), table=torch.randn(16, 2),
    ),
    "mean_of_what_layers_make": lambda: Net(
        lambda m, x: m.a(x) + m.f(m.table).mean(0)[:, None, None],
        a=pointwise(3, 8), f=nn.Linear(2, 8), table=torch.randn(16, 2),
    ),
    "normalised_positions": lambda: Net(
        lambda m, x: m.a(x) + m.n(m.p).mT.reshape(8, 4, 4), a=pointwise(3, 8), n=nn.LayerNorm(8), p=weight(16, 8)
    ),
    "by_the_batch": lambda: Net(
        lambda m, x: m.a(x) + (m.p - m.p.mean() * torch.ones(x.shape[0], 1, 1, 1)), a=pointwise(3, 8), p=weight(8, 1, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in LEFT if name != "by_the_batch"])
def test_left_as_it_is(name):
    folded, plain = traced_twice(LEFT[name]())
    assert not is_noted(folded)
    assert show(folded) == show(plain)
    assert names(folded) == names(plain)


def test_what_hangs_on_the_batch_size_is_not_folded():
    """Here the mean is one number; the sum it goes into has the size of the batch."""
    net = prepared(LEFT["by_the_batch"]())
    traced = trace(net, drawn(IMAGE))
    assert not is_noted(traced)
    assert relative_error(evaluate(traced.module, drawn(IMAGE, batch=5)), evaluate(net, drawn(IMAGE, batch=5))) <= 1e-12


def test_what_is_written_in_place_is_not_folded():
    """The weight is another one at every call."""

    def function(m):
        m.count.add_(m.g.square())
        return m.w * (m.count / m.count.sum())

    net = prepared(conv(function, w=weight(8, 3, 1, 1), g=weight(8, 1, 1, 1), count=torch.ones(8, 1, 1, 1)))
    traced = trace(net, drawn(IMAGE))
    assert not is_noted(traced)
    for _ in range(2):
        assert relative_error(evaluate(traced.module, drawn(IMAGE)), evaluate(net, drawn(IMAGE))) <= 1e-12


def test_random_weights_are_not_folded():
    net = prepared(conv(lambda m: normalised(functional.dropout(m.w, 0.5)), w=weight(8, 3, 1, 1)))
    assert not is_noted(trace(net, drawn(IMAGE)))


def test_a_layer_called_twice_is_one_layer():
    layer = StandardisedConv(4, 4)
    folded, _ = traced_twice(nn.Sequential(pointwise(3, 4), layer, nn.ReLU(), layer))
    assert names(folded) == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert folded.parameter("1.weight") is folded.parameter("3.weight")
    found = [str(node.target) for node in folded.graph.find_nodes(op="get_attr")]
    assert len([name for name in found if name in {"1.weight", "3.weight"}]) == 1


def test_tied_parameters_stay_tied():
    net = Net(lambda m, x: m.b(m.a(x)), a=StandardisedConv(3, 3), b=StandardisedConv(3, 3))
    net.b.weight = net.a.weight
    folded, _ = traced_twice(net)
    assert folded.parameter("a.weight") is folded.parameter("b.weight")


def test_the_model_is_left_alone():
    net = prepared(FOLDED["spectral_norm"][0]())
    before = copy.deepcopy(net.state_dict())
    traced = trace(net, drawn(IMAGE))
    with torch.no_grad():
        traced.parameter("0.weight").zero_()
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_does_not_train_does_not_train_folded():
    net = prepared(FOLDED["standardised"][0]())
    net[0].weight.requires_grad_(False)
    traced = trace(net, drawn(IMAGE))
    assert not traced.parameter("0.weight").requires_grad
    assert traced.parameter("0.bias").requires_grad


def test_unread_parameters_stay():
    net = Net(lambda m, x: m.a(x), a=StandardisedConv(3, 4), spare=dense(3, 2))
    folded, _ = traced_twice(net)
    assert names(folded) == {"a.weight", "a.bias", "spare.weight"}


@pytest.mark.parametrize("name", ["standardised", "standardised_scaled", "normed_weights"])
def test_what_is_folded_is_free_slims_and_trains(name):
    """Nothing but the classes is frozen; gradients reach every parameter."""
    case = FIXTURES[name]
    laboratory = Laboratory.of(case.build(), case.inputs())
    assert sum(frozen.width for frozen in laboratory.coupling.frozen) == 4
    keep = random_keep(laboratory.coupling.groups)
    slim_equals_gated(laboratory, keep, case.inputs())
    before, after = train_a_step(laboratory.slim(keep).module, case.inputs(3))
    assert after < before
    module = laboratory.traced.module.train()
    module(*case.inputs(3)).square().sum().backward()
    assert [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_training_mode_has_nothing_to_switch():
    """The batch normalisation of the weight is gone; that of the activations switches."""
    folded, _ = traced_twice(nn.Sequential(StandardisedConv(3, 4), nn.BatchNorm2d(4)))
    found = [node for node in folded.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    assert len(found) == 1
    folded.module.train()
    assert found[0].args[5] is True


@pytest.mark.slow
def test_the_exported_file_computes_the_same(tmp_path):
    import onnxruntime

    case = FIXTURES["standardised_scaled"]
    inputs = tuple(x.float() for x in case.inputs())
    traced = trace(case.build().float(), inputs)
    export_onnx(traced.module, traced.example_inputs, tmp_path / "folded.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "folded.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})
    assert relative_error(torch.from_numpy(output), evaluate(traced.module, inputs)) <= 1e-4


def test_the_note_names_parameters_and_ops():
    folded, _ = traced_twice(nn.Sequential(StandardisedConv(3, 4), parametrizations.weight_norm(nn.Conv2d(4, 2, 1))))
    (note,) = folded.notes
    assert note == (
        "weights that are computed from other parameters (_weight_norm, batch_norm) are parameters of their own now, "
        "with the values they have: 0.weight, 1.weight"
    )


def test_clones_and_saved_weights_have_the_folded_parameters(tmp_path):
    folded, _ = traced_twice(FOLDED["standardised"][0]())
    torch.save(folded.module.state_dict(), tmp_path / "weights.pt")
    twin = trace(prepared(FOLDED["standardised"][0]()), drawn(IMAGE)).clone()
    with torch.no_grad():
        twin.parameter("0.weight").zero_()
    twin.module.load_state_dict(torch.load(tmp_path / "weights.pt"))
    error = relative_error(evaluate(twin.module, drawn(IMAGE)), evaluate(folded.module, drawn(IMAGE)))
    assert error <= TOLERANCE
