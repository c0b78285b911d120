"""An oracle that knows nothing of labels: the network built narrow from the start, loaded with weights picked by hand.

Normalisations over channels and attention with whole groups and heads gone; statistics run over what is kept.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.trial import randomise, relative_error
from tests.networks.fixtures import FIXTURES
from tests.networks.gates import GroupNormNet
from tests.networks.parts_attention import Attention, Heads
from tests.oracles import Laboratory, narrowed

TOKENS, CHANNELS = 5, 4


def prepared(module: nn.Module) -> nn.Module:
    return randomise(module.double()).eval()


def error(laboratory: Laboratory, keep, narrow: nn.Module, *inputs: Tensor) -> float:
    """Of the slim network against the narrow one, at two batch sizes."""
    slim = laboratory.slim(keep).module.eval()
    with torch.no_grad():
        pairs = [(slim(*each), narrow(*each)) for each in (inputs, tuple(x[:1] for x in inputs))]
    return max(relative_error(one, other) for one, other in pairs)


def blocks_of(laboratory: Laboratory, parameter: str) -> str:
    """The group of whole blocks that cuts a parameter's first axis."""
    found = [
        group.id
        for group in laboratory.coupling.groups
        if "#blocks" in group.id and any(site.name == parameter and site.axis == 0 for site in group.sites)
    ]
    assert len(found) == 1, [group.id for group in laboratory.coupling.groups]
    return found[0]


def test_whole_groups_of_a_normalisation_go():
    """Of two groups of four channels the second stays; a GroupNorm of one group takes its place."""
    case = FIXTURES["group_norm"]
    module = case.build()
    laboratory = Laboratory.of(module, case.inputs())
    second = (4, 5, 6, 7)
    axes = {
        "conv2.weight": {0: second}, "conv2.bias": {0: second}, "norm2.weight": {0: second}, "norm2.bias": {0: second},
        "fc.weight": {1: second},
    }  # fmt: skip
    narrow = narrowed(GroupNormNet((6, 4), (1, 1)), module.state_dict(), axes)
    assert error(laboratory, {blocks_of(laboratory, "conv2.weight"): (1,)}, narrow, *case.inputs()) <= 1e-12


@pytest.mark.slow
def test_channels_and_whole_groups_go_together():
    """Two of four channels of the group that stays."""
    case = FIXTURES["group_norm"]
    module = case.build()
    laboratory = Laboratory.of(module, case.inputs())
    kept = (1, 2)
    axes = {
        "conv2.weight": {0: kept}, "conv2.bias": {0: kept}, "norm2.weight": {0: kept}, "norm2.bias": {0: kept},
        "fc.weight": {1: kept},
    }  # fmt: skip
    narrow = narrowed(GroupNormNet((6, 2), (1, 1)), module.state_dict(), axes)
    keep = {blocks_of(laboratory, "conv2.weight"): (0,), "conv2.weight": (1, 2, 4, 7)}
    assert error(laboratory, keep, narrow, *case.inputs()) <= 1e-12


class Normalised(nn.Module):
    """A convolution, a normalisation over its channels in two places, a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.layer = nn.LayerNorm(width, eps=0.01)
        self.rms = nn.RMSNorm(width, eps=0.01)
        self.whole = nn.GroupNorm(1, width, eps=0.01)
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(self.first(x).permute(0, 2, 3, 1)))
        return self.last(self.whole(self.rms(y).permute(0, 3, 1, 2).tanh()))


@pytest.mark.parametrize("kept", [(0,), (1, 4), (0, 2, 3, 5)])
def test_statistics_run_over_the_kept_channels(kept):
    module = prepared(Normalised(6))
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    laboratory = Laboratory.of(module, (images,))
    rows = {name: {0: kept} for name in module.state_dict() if name != "last.bias"}
    narrow = narrowed(Normalised(len(kept)), module.state_dict(), rows | {"last.weight": {1: kept}})
    assert error(laboratory, {"first.weight": kept}, narrow, images) <= 1e-12


class Attending(nn.Module):
    """Attention between two linear layers."""

    def __init__(self, part: Attention) -> None:
        super().__init__()
        self.first = nn.Linear(3, CHANNELS)
        self.heads = Heads(CHANNELS, TOKENS, part)
        self.last = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.gelu(self.heads(self.first(x))))


def inner(heads: tuple[int, ...], of: int, size: int, parts: int = 1) -> tuple[int, ...]:
    """Rows of a projection that belong to some of its heads."""
    return tuple((part * of + head) * size + row for part in range(parts) for head in heads for row in range(size))


ATTENTIONS = {
    "separate": Attention(heads=3, size=2),
    "fused": Attention(heads=3, size=2, project="reshape", product="sdpa"),
    "chunked": Attention(heads=3, size=2, project="chunk", norm="layer"),
    "tables": Attention(heads=3, size=2, project="split", bias="table"),
    "relative": Attention(heads=3, size=2, bias="relative", product="sdpa"),
    "einsum": Attention(heads=3, size=2, project="einsum", product="einsum", bias="slope"),
    "normalised": Attention(heads=3, size=2, project="index", qk_norm="l2"),
}


@pytest.mark.parametrize("kept", [(1,), (0, 2)])
@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_whole_heads_go(name, kept):
    part = ATTENTIONS[name]
    module = prepared(Attending(part))
    tokens = torch.randn(2, TOKENS, 3, dtype=torch.float64)
    laboratory = Laboratory.of(module, (tokens,))
    picks: dict[str, dict[int, tuple[int, ...]]] = {"heads.out.weight": {1: inner(kept, 3, 2)}}
    for layer in ("query", "key", "value"):
        picks |= {f"heads.{layer}.{kind}": {0: inner(kept, 3, 2)} for kind in ("weight", "bias")}
        picks[f"heads.{layer}"] = {0: kept}  # a parameter per head
    picks |= {f"heads.qkv.{kind}": {0: inner(kept, 3, 2, 3)} for kind in ("weight", "bias")}
    picks |= {"heads.table": {1 if part.bias == "relative" else 0: kept}}
    picks |= {"heads.slopes": {0: kept}, "heads.temperature": {0: kept}}
    state = module.state_dict()
    narrow = narrowed(
        Attending(Attention(**{**vars(part), "heads": len(kept)})),
        state,
        {key: axes for key, axes in picks.items() if key in state},
    )
    first = next(key for key in ("heads.qkv.weight", "heads.query.weight", "heads.query") if key in state)
    groups = laboratory.coupling.groups
    if first == "heads.query":  # heads are an axis of its own: its positions are the group's
        group = next(one.id for one in groups if any(s.name == first and s.axis == 0 for s in one.sites))
    else:
        group = blocks_of(laboratory, first)
    assert error(laboratory, {group: kept}, narrow, tokens) <= 1e-12
