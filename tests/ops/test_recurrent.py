"""Rules of recurrent layers, against layers that were built narrow."""

import pytest
from torch import nn

from benchmarks.trial import relative_error
from tests.networks.net import Net, dense, drawn, prepared, tokens, weight
from tests.ops.rules import check, frozen
from tests.oracles import Laboratory

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
LAYERS = [nn.LSTM, nn.GRU, nn.RNN]


def lines(layer: str, *, biases: bool = True) -> list[str]:
    """The groups of one layer ``r`` in one direction between ``a`` and ``h``: its inputs and its hidden units."""
    units = f"6: h.weight[1] r.weight_ih{layer}[0] r.weight_hh{layer}[0] r.weight_hh{layer}[1]"
    units += f" r.bias_ih{layer}[0] r.bias_hh{layer}[0]" if biases else ""
    return [f"8: a.weight[0] r.weight_ih{layer}[1]", units]


def through(layer, outputs=6, first=True):
    """``h(r(a(tokens)))`` with the layer's output of every step."""
    return tokens(lambda m, y: m.r(y if first else y.transpose(0, 1))[0], outputs=outputs, r=layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_layer(kind):
    check(through(kind(8, 6, batch_first=True)), lines("_l0"))


def test_without_biases():
    check(through(nn.LSTM(8, 6, batch_first=True, bias=False)), lines("_l0", biases=False))


def test_relu():
    check(through(nn.RNN(8, 6, batch_first=True, nonlinearity="relu")), lines("_l0"))


@pytest.mark.parametrize("kind", LAYERS)
def test_units_of_all_layers_and_directions_are_tied(kind):
    """The states of all of them are one tensor."""
    laboratory = check_some(through(kind(8, 6, num_layers=2, bidirectional=True, batch_first=True), outputs=12))
    inputs, units = laboratory.coupling.groups
    assert (inputs.width, units.width) == (8, 6)
    assert len([site for site in units.sites if site.name.startswith("r.weight_hh") and site.axis == 1]) == 4
    assert {(site.name, site.axis) for site in units.sites} >= {("r.weight_ih_l1", 1), ("h.weight", 1)}


def check_some(net):
    """As `check`, without the wanted lines."""
    from benchmarks.trial import random_keep
    from tests.properties.invariants import slim_equals_gated

    inputs = drawn((5, 3))
    laboratory = Laboratory.of(prepared(net), inputs)
    slim_equals_gated(laboratory, random_keep(laboratory.coupling.groups), inputs)
    return laboratory


@pytest.mark.parametrize("kind", LAYERS)
def test_steps_first(kind):
    check(through(kind(8, 6), first=False), lines("_l0"))


@pytest.mark.parametrize("kind", LAYERS)
def test_last_state(kind):
    def last(m, y):
        state = m.r(y)[1]
        return (state[0] if isinstance(state, tuple) else state)[-1]

    check(tokens(last, outputs=6, r=kind(8, 6, batch_first=True)), lines("_l0"))


@pytest.mark.parametrize("kind", LAYERS)
def test_slim_is_a_layer_built_narrow(kind):
    """Rows of every gate, columns of what is read: picked by hand and loaded into torch's own narrow layer."""
    net, inputs = prepared(through(kind(8, 6, batch_first=True))), drawn((5, 3))
    laboratory = Laboratory.of(net, inputs)
    entered, units = [0, 3, 7], [1, 2, 4, 5]
    groups = {group.width: group.id for group in laboratory.coupling.groups}
    slim = laboratory.slim({groups[8]: entered, groups[6]: units})
    narrow = prepared(through(kind(3, 4, batch_first=True), outputs=4))
    narrow.a, state = dense(3, 3).double(), dict(net.state_dict())
    rows = [unit + 6 * gate for gate in range(GATES[kind]) for unit in units]
    for name in ("r.weight_ih_l0", "r.weight_hh_l0", "r.bias_ih_l0", "r.bias_hh_l0"):
        state[name] = state[name][rows]
    state["r.weight_hh_l0"] = state["r.weight_hh_l0"][:, units]
    state["r.weight_ih_l0"] = state["r.weight_ih_l0"][:, entered]
    state["a.weight"], state["h.weight"] = state["a.weight"][entered], state["h.weight"][:, units]
    narrow.load_state_dict(state)
    assert relative_error(slim.module(*inputs), narrow(*inputs)) <= 1e-12


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cell(kind):
    def step(m, y):
        state = m.r(y[:, 0])
        for place in range(1, 3):
            state = m.r(y[:, place], state)
        return state[0] if isinstance(state, tuple) else state

    check(tokens(step, outputs=6, r=kind(8, 6)), lines(""))


def test_a_state_of_ones_own():
    net = tokens(
        lambda m, y: m.r(y, m.s.expand(-1, y.shape[0], -1).contiguous())[0],
        outputs=6,
        r=nn.GRU(8, 6, batch_first=True),
        s=weight(1, 1, 6),
    )
    inputs, units = lines("_l0")
    check(net, [units.replace("6: ", "6: s[2] "), inputs])


def test_a_state_that_comes_in_stays():
    net = Net(
        lambda m, x, s: m.h(m.r(m.a(x), s.transpose(0, 1).contiguous())[0]),
        a=dense(3, 8),
        r=nn.GRU(8, 6, batch_first=True),
        h=dense(6, 2),
    )
    want = [lines("_l0")[0], "r.weight_hh_l0[1] stays, 6: the initial state has no labels"]
    check(net, want, (5, 3), (1, 6))


def test_a_single_unit():
    net = tokens(lambda m, y: m.r(y)[0], outputs=1, r=nn.LSTM(8, 1, batch_first=True))
    check(net, [lines("_l0")[0]])


def test_projections_stay():
    net = tokens(lambda m, y: m.r(y)[0], outputs=3, r=nn.LSTM(8, 6, proj_size=3, batch_first=True))
    check(net, frozen("aten.lstm.input with projections or packed steps is not followed"))
