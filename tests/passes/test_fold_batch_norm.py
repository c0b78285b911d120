"""`FoldBatchNorm` leaves the function as it is and the normalisation out."""

from textwrap import dedent

import pytest
import torch
import torchvision
from torch import nn

from curlfx.errors import UsageError
from curlfx.graph import show, trace
from curlfx.passes.fold_batch_norm import FoldBatchNorm
from curlfx.passes.pipeline import run
from tests.graph.networks import Small, randomise

FOLDED = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), lambda: nn.BatchNorm1d(4), (3, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, bias=False), lambda: nn.BatchNorm2d(4), (3, 8, 8)),
    "conv2d-same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), lambda: nn.BatchNorm2d(4), (3, 8, 8)),
    "conv2d-grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), lambda: nn.BatchNorm2d(9, eps=1e-3), (6, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3, bias=False), lambda: nn.BatchNorm3d(4), (3, 5, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 4, 3), lambda: nn.BatchNorm1d(4), (3, 8)),
    "transposed2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, bias=False), lambda: nn.BatchNorm2d(4), (3, 4, 4)),
    "transposed2d-grouped": (lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), lambda: nn.BatchNorm2d(9), (6, 4, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), lambda: nn.BatchNorm3d(6), (4, 3, 3, 3)),
    "linear": (lambda: nn.Linear(5, 4), lambda: nn.BatchNorm1d(4), (5,)),
    "linear-without-bias": (lambda: nn.Linear(5, 4, bias=False), lambda: nn.BatchNorm1d(4), (5,)),
    "without-affine": (lambda: nn.Conv2d(3, 4, 1), lambda: nn.BatchNorm2d(4, affine=False), (3, 4, 4)),
}


def double(model: nn.Module, shape: tuple[int, ...]):
    model = randomise(model.double()).eval()
    return model, trace(model, torch.randn(2, *shape, dtype=torch.float64)), torch.randn(5, *shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", FOLDED)
def test_the_function_stays(kind):
    layer, norm, shape = FOLDED[kind]
    model, traced, x = double(nn.Sequential(layer(), norm(), nn.ReLU()), shape)
    text = show(traced)
    result, (record,) = run(traced, [FoldBatchNorm()])
    assert record.changed
    assert "batch_norm" not in show(result)
    assert set(result.module.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(result.module(x), model(x), rtol=1e-12, atol=1e-12)
    assert show(traced) == text
    assert torch.equal(traced.module(x), model(x))


def test_golden():
    traced = trace(Small(), torch.randn(1, 3, 6, 6))
    assert show(FoldBatchNorm()(traced)) == dedent("""\
        %conv.bias = parameter : f32[4]
        %conv.weight = parameter : f32[4, 3, 3, 3]
        %fc.weight = parameter : f32[2, 4]
        %fc.bias = parameter : f32[2]
        %x = input : f32[2, 3, 6, 6]
        %conv2d = aten.conv2d.default(%x, %conv.weight, %conv.bias, [1, 1], [1, 1]) : f32[2, 4, 6, 6]
        %relu = aten.relu.default(%conv2d) : f32[2, 4, 6, 6]
        %mean = aten.mean.dim(%relu, [2, 3]) : f32[2, 4]
        %dropout = aten.dropout.default(%mean, 0.25, False) : f32[2, 4]
        %linear = aten.linear.default(%dropout, %fc.weight, %fc.bias) : f32[2, 2]
        return (%linear,)""")


def test_a_chain_of_normalisations_folds_whole():
    model, traced, x = double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), (3, 6, 6))
    result = FoldBatchNorm()(traced)
    assert set(result.module.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(result.module(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_networks(name):
    model, traced, x = double(torchvision.models.get_model(name, weights=None, num_classes=5), (3, 64, 64))
    result = FoldBatchNorm()(traced)
    torch.testing.assert_close(result.module(x), model(x), rtol=1e-9, atol=1e-9)
    left = show(result).count("aten.batch_norm")
    assert left == (62 if name == "densenet121" else 0)  # those that come before a ReLU and a convolution
    assert not run(result, [FoldBatchNorm()])[1][0].changed


class Shared(nn.Module):
    """A convolution whose output two nodes read, one that is called twice, and a normalisation that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fork, self.twice, self.plain = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.fork(x)
        y = self.bn(y) + y
        return self.bn2(self.twice(self.bn1(self.twice(y)))) + self.bn(self.plain(x))


def test_what_others_read_is_not_folded():
    model, traced, x = double(Shared(), (3, 4, 4))
    result = FoldBatchNorm()(traced)
    assert show(result).count("aten.batch_norm") == 3
    assert list(result.module.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(result.module(x), model(x), rtol=1e-12, atol=1e-12)


class Tokens(nn.Module):
    """Normalisation over tokens, not over the features of the linear layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.bn(self.fc(x))


def test_normalisation_over_tokens_is_not_folded():
    model, traced, x = double(Tokens(), (6, 6))
    result, (record,) = run(traced, [FoldBatchNorm()])
    assert not record.changed
    assert torch.equal(result.module(x), model(x))


def test_half_precision_weights_keep_their_type():
    traced = trace(randomise(Small()), torch.randn(1, 3, 6, 6)).to(torch.bfloat16)
    assert {p.dtype for p in FoldBatchNorm()(traced).module.parameters()} == {torch.bfloat16}


def test_training_mode_is_refused():
    traced = trace(Small(), torch.randn(1, 3, 6, 6))
    traced.module.train()
    with pytest.raises(
        UsageError, match=r"fold-batch-norm: the network is in training mode; call module\.eval\(\) first"
    ):
        FoldBatchNorm()(traced)
