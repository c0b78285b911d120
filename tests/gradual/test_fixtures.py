"""Over the table of small networks: what one step leaves is the slim network, or masks are refused."""

import copy

import pytest
import torch

from curlfx.errors import UsageError
from curlfx.gradual import GradualPruner, Schedule
from curlfx.gradual.mask import difference
from curlfx.graph import TracedModel, trace
from curlfx.planning.apply import slim
from tests.networks.fixtures import FIXTURES

STEPS = Schedule(1, 2, amount="30%")


def masked_pruner(traced: TracedModel) -> GradualPruner | None:
    try:
        return GradualPruner(traced, STEPS, "random")
    except UsageError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIXTURES)[::6])
def test_a_step_leaves_the_slim_network(name: str) -> None:
    case = FIXTURES[name]
    inputs = case.inputs()
    traced = trace(case.build(), inputs, dynamic_batch=case.dynamic)
    dense = copy.deepcopy(traced)
    pruner = GradualPruner(traced, STEPS, "random", physical=True)
    pruner.step(1)
    pruner.step(2)
    wanted = slim(dense, pruner.plan())
    with torch.inference_mode():
        assert difference(wanted.module(*inputs), traced.module(*inputs)) <= 1e-12
    state = pruner.dense_state_dict()
    zeroed = copy.deepcopy(dense)
    zeroed.module.load_state_dict(state)
    with torch.inference_mode():
        again = slim(zeroed, pruner.plan())
        assert difference(wanted.module(*inputs), again.module(*inputs)) <= 1e-12
    masked = masked_pruner(dense)
    if masked is None:
        assert case.statistics
        return
    masked.step(1)
    masked.step(2)
    assert masked.keep == pruner.keep
    with torch.inference_mode():
        assert difference(wanted.module(*inputs), dense.module(*inputs)) <= 1e-9
        assert difference(wanted.module(*inputs), zeroed.module(*inputs)) <= 1e-9
