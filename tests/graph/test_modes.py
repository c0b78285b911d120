"""Training mode of a traced network is the model's own, to the last bit."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from curlfx.graph import check, show, trace
from tests.graph.networks import AlwaysDropping, Small, Tied, gradient_steps, randomise


def assert_equal_states(ours: nn.Module, theirs: nn.Module) -> None:
    ours_state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours_state[name], tensor), name


@pytest.mark.slow
def test_two_steps_of_resnet18_are_bit_equal():
    model = randomise(torchvision.models.resnet18(weights=None, num_classes=7)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    traced = trace(model, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    inputs = [torch.randn(4, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    labels = torch.tensor([0, 1, 5, 6])
    for module in (model, traced.module):
        gradient_steps(module, inputs, lambda y: functional.cross_entropy(y, labels))
    assert_equal_states(traced.module, model)
    assert traced.parameter("bn1.num_batches_tracked") == 2
    assert torch.equal(traced.module.eval()(inputs[0]), model.eval()(inputs[0]))


@pytest.mark.parametrize("momentum", [0.1, 0.03, None])
def test_running_statistics_follow_the_momentum(momentum):
    model = randomise(Small(momentum)).double()
    model.bn.reset_running_stats()
    traced = trace(model, torch.randn(1, 3, 6, 6, dtype=torch.float64))
    check(traced)
    traced.module.train()
    check(traced)
    for _ in range(3):
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
        for module in (model, traced.module):
            torch.manual_seed(1)
            module.train()(x)
    assert_equal_states(traced.module, model)
    assert torch.equal(traced.module.eval()(x), model.eval()(x))


def test_dropout_draws_the_same_numbers():
    model = randomise(Small())
    traced = trace(model, torch.randn(1, 3, 6, 6))
    x = torch.randn(16, 3, 6, 6)
    outputs = []
    for module in (model, traced.module):
        torch.manual_seed(3)
        outputs.append(module.train()(x))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], traced.module(x))


def test_a_module_called_twice_counts_twice():
    model = randomise(Tied())
    traced = trace(model, torch.randn(2, 5))
    x = torch.randn(6, 5)
    assert torch.equal(traced.module.train()(x), model.train()(x))
    assert_equal_states(traced.module, model)
    assert traced.parameter("bn.num_batches_tracked") == 2


def test_flipping_back_restores_the_graph():
    traced = trace(Small(None), torch.randn(1, 3, 6, 6))
    text, code = show(traced), traced.module.code
    assert traced.module.train() is traced.module
    assert traced.module.training
    assert show(traced) != text
    traced.module.eval()
    assert show(traced) == text
    assert traced.module.code == code


def test_nothing_is_compiled_when_nothing_flips():
    module = trace(Small(), torch.randn(1, 3, 6, 6)).module
    forward = type(module).forward
    assert type(module.eval()).forward is forward
    assert type(module.train()).forward is not forward


def test_what_the_model_computes_alike_in_both_modes_stays():
    traced = trace(AlwaysDropping(), torch.randn(2, 4))
    text = show(traced)
    traced.module.train()
    assert show(traced) == text


def test_modules_that_the_model_keeps_in_eval_stay_in_eval():
    class Frozen(Small):
        def train(self, mode: bool = True):
            super().train(mode)
            self.bn.eval()
            return self

    model = randomise(Frozen())
    traced = trace(model, torch.randn(1, 3, 6, 6))
    x = torch.randn(4, 3, 6, 6)
    for module in (model, traced.module):
        torch.manual_seed(0)
        module.train()(x)
    assert_equal_states(traced.module, model)


def test_normalisation_without_running_statistics():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.InstanceNorm2d(3))
    traced = trace(model, torch.randn(2, 3, 4, 4))
    x = torch.randn(5, 3, 4, 4)
    for mode in (True, False):
        assert torch.equal(traced.module.train(mode)(x), model.train(mode)(x))


def test_instance_norm_with_running_statistics_and_other_dropouts():
    model = nn.Sequential(
        nn.InstanceNorm2d(3, affine=True, track_running_stats=True), nn.Dropout2d(0.4), nn.AlphaDropout(0.3), nn.RReLU()
    )
    traced = trace(randomise(model), torch.randn(2, 3, 4, 4))
    x = torch.randn(5, 3, 4, 4)
    for mode in (True, False):
        outputs = []
        for module in (model, traced.module):
            torch.manual_seed(0)
            outputs.append(module.train(mode)(x))
        assert torch.equal(*outputs)
    assert_equal_states(traced.module, model)


def test_attention_drops_in_training():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    model = Attention()
    traced = trace(model, torch.randn(2, 4, 8))
    x = torch.randn(3, 4, 8)
    assert traced.notes == ()
    torch.testing.assert_close(traced.module(x), model.eval()(x))
    assert not torch.equal(traced.module.train()(x), traced.module(x))
    text = show(traced)
    assert "0.5" in text
    assert "0.5" not in show_eval(traced)


def show_eval(traced):
    traced.module.eval()
    return show(traced)


def test_a_normalisation_with_a_forward_of_its_own():
    class NormAct(nn.BatchNorm2d):
        def forward(self, x):
            if self.training:
                self.num_batches_tracked.add_(1)
            y = functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
            return torch.relu(y)

    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4)).double())
    traced = trace(model, torch.randn(1, 3, 6, 6, dtype=torch.float64))
    assert traced.notes == ()
    inputs = [torch.randn(4, 3, 6, 6, dtype=torch.float64) for _ in range(2)]
    for module in (model, traced.module):
        gradient_steps(module, inputs, lambda y: y.square().mean())
    assert_equal_states(traced.module, model)
