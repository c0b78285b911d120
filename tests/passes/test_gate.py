"""`Gate` multiplies channels where they are read, and deletes nothing."""

from textwrap import dedent

import pytest
import torch
from torch import nn

from benchmarks.trial import relative_error
from curlfx.coupling import Coupling, couple
from curlfx.errors import InvariantError
from curlfx.graph import TracedModel, show, trace
from curlfx.passes.gate import GATES, Gate, set_gates
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from tests.networks.net import IMAGE, TOKENS, Net, dense, drawn, pointwise, prepared


def chain() -> Net:
    return Net(lambda m, x: m.c(m.b(m.a(x).sigmoid())), a=pointwise(3, 4), b=pointwise(4, 3), c=pointwise(3, 2))


def made(net: nn.Module, *shapes: tuple[int, ...]) -> tuple[TracedModel, Coupling]:
    traced = trace(prepared(net), drawn(*(shapes or (IMAGE,))))
    return traced, couple(traced)


def gated(net: nn.Module, *shapes: tuple[int, ...], **options) -> tuple[nn.Module, Coupling]:
    traced, coupling = made(net, *shapes)
    return Gate(coupling, **options)(traced).module, coupling


@pytest.fixture(scope="module")
def chained() -> tuple[TracedModel, Coupling]:
    return made(chain())


def test_gates_stand_where_channels_are_read(chained):
    traced, coupling = chained
    assert show(Gate(coupling)(traced)) == dedent("""\
        %curlfx_channels_1 = buffer : i64[1, 3, 1, 1]
        %curlfx_channels_0 = buffer : i64[1, 4, 1, 1]
        %curlfx_gates = buffer : f64[8]
        %index_tensor_1 = aten.index.Tensor(%curlfx_gates, [%curlfx_channels_1]) : f64[1, 3, 1, 1]
        %index_tensor = aten.index.Tensor(%curlfx_gates, [%curlfx_channels_0]) : f64[1, 4, 1, 1]
        %a.weight = parameter : f64[4, 3, 1, 1]
        %b.weight = parameter : f64[3, 4, 1, 1]
        %c.weight = parameter : f64[2, 3, 1, 1]
        %inputs_0 = input : f64[2, 3, 4, 4]
        %conv2d = aten.conv2d.default(%inputs_0, %a.weight) : f64[2, 4, 4, 4]
        %sigmoid = aten.sigmoid.default(%conv2d) : f64[2, 4, 4, 4]
        %mul_tensor = aten.mul.Tensor(%sigmoid, %index_tensor) : f64[2, 4, 4, 4]
        %conv2d_1 = aten.conv2d.default(%mul_tensor, %b.weight) : f64[2, 3, 4, 4]
        %mul_tensor_1 = aten.mul.Tensor(%conv2d_1, %index_tensor_1) : f64[2, 3, 4, 4]
        %conv2d_2 = aten.conv2d.default(%mul_tensor_1, %c.weight) : f64[2, 2, 4, 4]
        return (%conv2d_2,)""")


def test_the_input_stays_as_it_is(chained):
    traced, coupling = chained
    text = show(traced)
    result = Gate(coupling)(traced)
    with torch.no_grad():
        for tensor in result.tensors().values():
            tensor.zero_()
    assert show(traced) == text
    assert float(traced.module(*drawn(IMAGE)).detach().abs().sum()) > 0


def test_open_gates_change_nothing(chained):
    traced, coupling = chained
    assert torch.equal(Gate(coupling)(traced).module(*drawn(IMAGE)), traced.module(*drawn(IMAGE)))


def test_a_closed_gate_is_a_zeroed_column():
    """What the closed channels would have given their reader, left out by hand."""
    net = prepared(chain())
    module, coupling = gated(net)
    gates = torch.ones(8)
    gates[coupling.group("a.weight").channels[[0, 2]]] = 0
    set_gates(module, gates)
    (x,) = drawn(IMAGE)
    y = net.a(x).sigmoid()
    y[:, [0, 2]] = 0
    torch.testing.assert_close(module(x), net.c(net.b(y)), rtol=1e-14, atol=0)


def test_gates_have_gradients(chained):
    """The sum of gradient times gate over a group is the gradient times activation that Taylor criteria take."""
    traced, coupling = chained
    module = Gate(coupling)(traced).module
    gates = torch.ones(coupling.total + 1, dtype=torch.float64, requires_grad=True)
    module.curlfx_gates = gates
    module(*drawn(IMAGE)).square().sum().backward()
    assert gates.grad is not None
    assert float(gates.grad[0]) == 0
    assert bool((gates.grad[1:] != 0).all())


def test_nothing_to_gate():
    traced, coupling = made(Net(lambda m, x: m.a(x), a=pointwise(3, 4)))
    result, (record,) = run(traced, [Gate(coupling)])
    assert not record.changed
    assert show(result) == show(traced)


def test_gate_refuses_another_network(chained):
    with pytest.raises(InvariantError, match="is not in this graph"):
        Gate(chained[1])(made(Net(lambda m, x: m.a(x).sum(1), a=pointwise(3, 4)))[0])


def test_gates_are_of_the_type_of_the_weights(chained):
    traced, coupling = chained
    half = traced.clone().to(torch.bfloat16)
    assert Gate(coupling)(half).tensors()[GATES].dtype == torch.bfloat16


def test_gates_are_no_state(chained):
    traced, coupling = chained
    assert list(Gate(coupling)(traced).module.state_dict()) == list(traced.module.state_dict())


def test_one_tensor_read_twice_is_gated_for_each_reader():
    net = Net(lambda m, x: m.b(m.a(x)) + m.c(m.a(x)), a=pointwise(3, 4), b=pointwise(4, 2), c=pointwise(4, 2))
    shared = Net(lambda m, x: twice(m, m.a(x)), a=pointwise(3, 4), b=pointwise(4, 2), c=pointwise(4, 2))
    for each in (net, shared):
        module, coupling = gated(each)
        set_gates(module, torch.tensor([1.0, 0, 0, 0, 0]))
        assert coupling.total == 4
        assert not module(*drawn(IMAGE)).any()


def twice(m, y):
    return m.b(y) + m.c(y)


def square(y):
    return y @ y.mT


def test_both_factors_of_a_product_are_gated():
    module, coupling = gated(Net(lambda m, x: square(m.a(x)), a=dense(3, 4)), TOKENS)
    set_gates(module, torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5]))
    open_module, _ = gated(Net(lambda m, x: square(m.a(x)), a=dense(3, 4)), TOKENS)
    open_module.load_state_dict(module.state_dict())
    assert coupling.total == 4
    torch.testing.assert_close(module(*drawn(TOKENS)), open_module(*drawn(TOKENS)) / 4)


NORMALISED = {
    "layer": (dense, nn.LayerNorm(8), TOKENS),
    "layer without affine": (dense, nn.LayerNorm(8, elementwise_affine=False), TOKENS),
    "layer without bias": (dense, nn.LayerNorm(8, bias=False), TOKENS),
    "rms": (dense, nn.RMSNorm(8), TOKENS),
    "rms with eps": (dense, nn.RMSNorm(8, eps=0.3), TOKENS),
    "layer of all": (pointwise, nn.LayerNorm([8, 4, 4]), IMAGE),
    "group": (pointwise, nn.GroupNorm(2, 8, eps=0.1), IMAGE),
    "group of all": (pointwise, nn.GroupNorm(1, 8), IMAGE),
    "group without affine": (pointwise, nn.GroupNorm(4, 8, affine=False), IMAGE),
    "group of one": (pointwise, nn.GroupNorm(8, 8), IMAGE),
    "layer after layer": (dense, nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8)), TOKENS),
    "rms after layer": (dense, nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8)), TOKENS),
    "group after group": (pointwise, nn.Sequential(nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)), IMAGE),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_statistics_over_open_gates(name):
    """Spelled-out normalisations: equal to torch's with open gates, to the slim network's with closed ones."""
    layer, norm, shape = NORMALISED[name]
    traced, coupling = made(Net(lambda m, x: m.b(m.n(m.a(x)).sigmoid()), a=layer(3, 8), n=norm, b=layer(8, 2)), shape)
    module = Gate(coupling, statistics="kept")(traced).module
    (x,) = drawn(shape)
    assert relative_error(module(x), traced.module(x)) < 1e-12
    keep = {"a.weight": (1, 3, 4, 6)}  # as many of every block
    set_gates(module, torch.from_numpy(coupling.alive(keep)))
    assert relative_error(module(x), Slim(coupling, keep)(traced).module(x)) < 1e-12


def test_statistics_over_all_channels():
    """The default leaves every statistic as in the intact network, whatever is closed."""
    net = prepared(Net(lambda m, x: m.b(m.n(m.a(x))), a=dense(3, 4), n=nn.LayerNorm(4), b=dense(4, 2)))
    module, _ = gated(net, TOKENS)
    set_gates(module, torch.tensor([1.0, 1, 0, 1, 0]))
    (x,) = drawn(TOKENS)
    y = net.n(net.a(x)) * torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(module(x), net.b(y), rtol=1e-12, atol=1e-12)


def test_a_group_that_is_gone_is_no_number_over_zero():
    net = Net(lambda m, x: m.b(m.n(m.a(x))), a=pointwise(3, 8), n=nn.GroupNorm(8, 8), b=pointwise(8, 2))
    module, _ = gated(net, statistics="kept")
    set_gates(module, torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 1]))
    assert bool(torch.isfinite(module(*drawn(IMAGE))).all())


@pytest.mark.parametrize("example", [True, False])
def test_a_network_that_was_cast_is_gated_in_its_new_type(example):
    """Types that were found at the trace are others after a cast."""
    traced, coupling = made(chain())
    (x,) = drawn(IMAGE)
    wanted = traced.module(x)
    (traced if example else traced.module).to(torch.float32)
    found = Gate(coupling)(traced).module(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
