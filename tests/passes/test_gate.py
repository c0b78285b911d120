"""Gates where the shape or the type of what they multiply is not that of the channels."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.trial import random_keep, randomise, relative_error
from tests.oracles import Laboratory
from tests.properties import invariants


class HeadsInBatch(nn.Module):
    """Attention with its heads merged into the batch axis, where every head keeps channels of its own."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(self.into(x)).chunk(3, -1)
        query, key, value = (
            part.reshape(batch, tokens, 2, 4).transpose(1, 2).reshape(batch * 2, tokens, 4) for part in parts
        )
        mixed = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
        return self.out(mixed.view(batch, 2, tokens, 4).transpose(1, 2).reshape(batch, tokens, 8))


class Shorter(nn.Module):
    """One layer of a float64 network that runs in float32, over a comparison's result."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.second = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = functional.linear(x.float(), self.second.weight.float(), self.second.bias.float())
        return self.out(y.double()) * (x > 0).sum(-1, keepdim=True)


@pytest.mark.parametrize("example", [2, 3])
def test_slim_equals_gated_at_other_batch_sizes(example):
    x = images(12)
    laboratory = Laboratory.of(randomise(HeadsInBatch().double()).eval(), (x[:example],))
    assert laboratory.coupling.group("qkv.weight").blocks is not None
    for seed, ratio in enumerate((0.5, 0.2)):
        keep = random_keep(laboratory.coupling.groups, ratio, seed)
        for batch in (1, 2, 5, 12):
            invariants.slim_equals_gated(laboratory, keep, (x[:batch],))


def test_masks_have_the_type_of_what_they_multiply():
    laboratory = Laboratory.of(randomise(Shorter().double()).eval(), (images(2),))
    keep = random_keep(laboratory.coupling.groups)
    assert set(keep) == {"first.weight", "second.weight"}
    for mode in ("all", "kept"):
        gated = invariants.evaluate(laboratory.gated(keep, statistics=mode).module, (images(5),))
        slim = invariants.evaluate(laboratory.slim(keep).module, (images(5),))
        assert relative_error(slim, gated) < 1e-5


def images(batch: int) -> Tensor:
    return torch.linspace(-3, 2, batch * 4 * 5, dtype=torch.float64).sin().reshape(batch, 4, 5)
