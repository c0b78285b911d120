"""`SetTraining` is ``module.train(mode)`` on a copy."""

import torch

from curlfx.graph import show, trace
from curlfx.passes.pipeline import run
from curlfx.passes.set_training import SetTraining
from tests.graph.networks import Small, gradient_steps, randomise


def test_training_flips_the_arguments_and_counts_batches():
    traced = trace(Small(), torch.randn(1, 3, 6, 6))
    text = show(traced)
    changed = [line for line in show(SetTraining(True)(traced)).splitlines() if line not in text.splitlines()]
    operands = "%conv2d, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var"
    assert changed == [
        "%bn.num_batches_tracked = buffer : i64[]",
        "%add__tensor = aten.add_.Tensor(%bn.num_batches_tracked, 1) : i64[]",
        f"%batch_norm = aten.batch_norm.default({operands}, True, 0.1, 1e-05, True) : f32[2, 4, 6, 6]",
        "%dropout = aten.dropout.default(%mean, 0.25, True) : f32[2, 4]",
    ]
    assert show(traced) == text


def test_there_and_back():
    traced = trace(Small(None), torch.randn(1, 3, 6, 6))
    back, records = run(traced, [SetTraining(True), SetTraining(False), SetTraining(False)])
    assert [record.changed for record in records] == [True, True, False]
    assert show(back) == show(traced)
    assert not back.module.training


def test_the_result_trains_like_the_model():
    model = randomise(Small()).double()
    result = SetTraining(True)(trace(model, torch.randn(1, 3, 6, 6, dtype=torch.float64)))
    assert result.module.training
    x = [torch.randn(4, 3, 6, 6, dtype=torch.float64)]
    for module in (model, result.module):
        torch.manual_seed(0)
        gradient_steps(module, x, lambda y: y.square().sum())
    ours, theirs = result.module.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
