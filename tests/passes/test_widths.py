"""The supernet pass: with gates set, the graph is the slim network that normalises by its batch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.trial import flatten_outputs
from curlfx.coupling import couple
from curlfx.errors import InvariantError, UsageError
from curlfx.graph import show, trace
from curlfx.graph.modes import set_argument
from curlfx.graph.traced import TracedModel
from curlfx.passes.gate import GATES, set_gates
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.passes.widths import Widths, batch_norms
from curlfx.search.space import Space
from tests.networks.case import Case
from tests.networks.fixtures import FIXTURES
from tests.networks.net import Net, drawn, prepared

CASES = [case for case in FIXTURES.values() if any("Norm" in type(m).__name__ for m in case.build().modules())]


def by_batch(network: TracedModel) -> nn.Module:
    """A network whose batch normalisations use their batch, and nothing else of training."""
    for node in batch_norms(network.graph):
        set_argument(node, 5, True)
    network.recompile()
    return network.module


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_gated_by_batch_is_slim_by_batch(case: Case) -> None:
    inputs = case.inputs(4)
    traced = trace(case.build(), inputs)
    coupling = couple(traced)
    space = Space.of(coupling)
    supernet, _ = run(traced, [Widths(coupling)])
    assert len(batch_norms(supernet.graph)) == len(batch_norms(traced.graph))
    generator = np.random.default_rng(0)
    for genome in (space.tiny, space.random(generator)):
        set_gates(supernet.module, torch.from_numpy(space.alive(genome)).double())
        slim = by_batch(run(traced, [Slim(coupling, space.keep(genome))])[0])
        pairs = zip(flatten_outputs(supernet.module(*inputs)), flatten_outputs(slim(*inputs)), strict=True)
        for gated, narrow in pairs:
            assert_close(gated, narrow, rtol=1e-8, atol=1e-10)


def normalised() -> Net:
    convolution = nn.Conv2d(3, 4, 1, bias=False)
    return Net(
        lambda net, x: net.head(net.bn(net.a(x)).relu()), a=convolution, bn=nn.BatchNorm2d(4), head=nn.Conv2d(4, 2, 1)
    )


def test_it_leaves_the_statistics_of_the_batch() -> None:
    inputs = drawn((3, 4, 4), batch=5)
    traced = trace(prepared(normalised()), inputs)
    text, before = show(traced), {name: tensor.clone() for name, tensor in traced.module.state_dict().items()}
    supernet, (record,) = run(traced, [Widths(couple(traced))])
    assert (record.name, record.changed) == ("widths", True)
    supernet.module(*inputs)
    value = torch.nn.functional.conv2d(inputs[0], before["a.weight"])
    assert_close(supernet.parameter("bn.running_mean"), value.mean((0, 2, 3)))
    assert_close(supernet.parameter("bn.running_var"), value.var((0, 2, 3)))
    assert supernet.parameter(GATES).tolist() == [1.0] * 5
    assert show(traced) == text
    assert all(torch.equal(tensor, before[name]) for name, tensor in traced.module.state_dict().items())


def test_refusals() -> None:
    traced = trace(prepared(normalised()), drawn((3, 4, 4)))
    coupling = couple(traced)
    with pytest.raises(UsageError, match="no channel of this network can go"):
        run(traced, [Widths(couple(traced, frozen=["a"]))])
    training = traced.clone()
    training.module.train()
    with pytest.raises(UsageError, match=r"in training mode; call module\.eval"):
        run(training, [Widths(coupling)])
    other = trace(prepared(Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 4, 1))), drawn((3, 4, 4)))
    with pytest.raises(InvariantError, match="of the coupling is not in this graph"):
        run(other, [Widths(coupling)])
