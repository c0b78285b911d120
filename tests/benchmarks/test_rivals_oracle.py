"""The oracle of the comparison: it must accept what is narrowed by hand, and reject what is narrowed wrongly."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.rivals_oracle import (
    UnidentifiedError,
    attention_widths,
    expected_output,
    kept_positions,
    output_error,
    removal,
    standardised_weights,
)
from benchmarks.trial import randomise


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def prepared(module):
    return randomise(module.double()).eval()


def take(module, name, rows=None, columns=None):
    """Select rows and columns of a parameter or buffer, by hand."""
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), leaf).detach()
    tensor = tensor if rows is None else tensor[rows]
    tensor = tensor if columns is None else tensor[:, columns]
    holder = module.get_submodule(owner)
    setattr(holder, leaf, nn.Parameter(tensor) if leaf in {"weight", "bias"} else tensor)


def error_of(intact, narrow, x, **meaning):
    removed = removal(intact, dict(narrow.named_parameters()))
    with torch.no_grad():
        return output_error([narrow(x)], [expected_output(intact, removed, (x,), **meaning)])


def conv_net():
    return prepared(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)))


def narrowed(net, rows, columns):
    narrow = copy.deepcopy(net)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        take(narrow, name, rows)
    take(narrow, "3.weight", columns=columns)
    return narrow


def test_positions_are_read_off_the_values():
    intact = torch.randn(7, 5, 3, dtype=torch.float64)
    found = kept_positions(intact, intact[[1, 4, 6]][:, [0, 3]])
    assert [positions.tolist() for positions in found] == [[1, 4, 6], [0, 3], [0, 1, 2]]


@pytest.mark.parametrize("change", [lambda w: w + 1, lambda w: w.flip(0).reshape(-1)[:6], lambda w: w[:0]])
def test_what_is_no_selection_is_not_identified(change):
    intact = torch.arange(12.0).reshape(4, 3)
    with pytest.raises(UnidentifiedError):
        kept_positions(intact, change(intact[:2] * 1.0))


def test_equal_values_are_not_identified():
    with pytest.raises(UnidentifiedError, match="4 times"):
        kept_positions(torch.ones(4), torch.ones(2))


def test_channels_narrowed_by_hand_are_accepted():
    net, x = conv_net(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    error, cut = error_of(net, narrowed(net, [0, 2, 5], [0, 2, 5]), x)
    assert error < 1e-12
    assert not cut
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_rows_and_columns_that_differ_are_rejected():
    net, x = conv_net(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert error_of(net, narrowed(net, [0, 2, 5], [0, 2, 4]), x)[0] > 1e-3


def test_statistics_that_were_not_narrowed_alike_are_rejected():
    net, x = conv_net(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    narrow = narrowed(net, [0, 2, 5], [0, 2, 5])
    narrow[1].running_mean = net[1].running_mean[[0, 1, 2]]
    assert error_of(net, narrow, x)[0] > 1e-3


def test_groups_of_a_convolution_may_lose_different_channels():
    net = prepared(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2)))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for columns, right in (([[0, 2], [0, 1]], True), ([[0, 2], [0, 2]], False)):
        narrow = copy.deepcopy(net)
        take(narrow, "0.weight", [0, 2, 3, 4])
        take(narrow, "0.bias", [0, 2, 3, 4])
        weight = net[1].weight.detach()
        narrow[1].weight = nn.Parameter(torch.cat([weight[:2][:, columns[0]], weight[2:][:, columns[1]]]))
        assert (error_of(net, narrow, x)[0] < 1e-12) == right


def test_columns_of_standardised_weights_are_masked_at_the_input():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    net = prepared(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), Standardised(6, 4, 1, bias=False)))
    narrow = copy.deepcopy(net)
    take(narrow, "0.weight", [1, 2])
    take(narrow, "1.weight", columns=[1, 2])
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert error_of(net, narrow, x)[0] > 1e-3  # its mean has changed
    assert error_of(net, narrow, x, kept_weights=True)[0] < 1e-12
    assert torch.equal(net(x), copy.deepcopy(net)(x))
    wrong = copy.deepcopy(narrow)
    wrong[1].weight = nn.Parameter(net[1].weight.detach()[:, [1, 3]])
    assert error_of(net, wrong, x, kept_weights=True)[0] > 1e-3


def test_layer_norm_averages_over_kept_channels():
    net = prepared(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)))
    narrow = copy.deepcopy(net)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        take(narrow, name, [1, 3, 4])
    narrow[1].normalized_shape = (3,)
    take(narrow, "2.weight", columns=[1, 3, 4])
    assert error_of(net, narrow, torch.randn(2, 3, dtype=torch.float64))[0] < 1e-12


@pytest.mark.parametrize(("kept", "right"), [([0, 2, 3, 4], True), ([0, 1, 2, 4], False)])
def test_group_norm_keeps_its_groups(kept, right):
    net = prepared(nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1)))
    narrow = copy.deepcopy(net)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        take(narrow, name, kept)
    narrow[1].num_channels = 4
    take(narrow, "2.weight", columns=kept)
    assert (error_of(net, narrow, torch.randn(2, 3, 4, 4, dtype=torch.float64))[0] < 1e-12) == right


def test_the_scale_of_narrower_heads_is_told_apart():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(3, 4), nn.Linear(3, 4)
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(functional.scaled_dot_product_attention(self.q(x), self.k(x), x))

    net, x = prepared(Attention()), torch.randn(2, 5, 3, dtype=torch.float64)
    narrow, widths = copy.deepcopy(net), []
    for name in ("q.weight", "q.bias", "k.weight", "k.bias"):
        take(narrow, name, [1, 3])
    removed = removal(net, dict(narrow.named_parameters()))
    with torch.no_grad(), attention_widths(widths):
        actual = [narrow(x)]
    assert widths == [2]
    assert output_error(actual, [expected_output(net, removed, (x,))])[0] > 1e-6
    assert output_error(actual, [expected_output(net, removed, (x,), attention=widths)])[0] < 1e-12


def test_missing_outputs_are_found_and_compared():
    whole = torch.randn(2, 6, dtype=torch.float64)
    assert output_error([whole[:, [1, 4]]], [whole]) == (0.0, True)
    error, cut = output_error([whole[:, [1, 4]] + 1], [whole])
    assert error > 1e-3
    assert cut
    assert output_error([whole], []) == (math.inf, False)


def test_standardised_values_in_place_of_a_weight_are_identified():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    net = prepared(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), Standardised(6, 4, 1), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = standardised_weights(net, (x,))
    assert list(found) == ["1.weight"]
    narrow = copy.deepcopy(net)
    take(narrow, "0.weight", [1, 2, 5])
    narrow[1] = nn.Conv2d(3, 2, 1, dtype=torch.float64)
    narrow[1].weight = nn.Parameter(found["1.weight"][[0, 3]][:, [1, 2, 5]])
    narrow[1].bias = nn.Parameter(net[1].bias.detach()[[0, 3]])
    take(narrow, "2.weight", columns=[0, 3])
    removed = removal(net, dict(narrow.named_parameters()), found)
    with torch.no_grad():
        assert output_error([narrow(x)], [expected_output(net, removed, (x,))])[0] < 1e-12
    with pytest.raises(UnidentifiedError, match=r"1\.weight"):
        removal(net, dict(narrow.named_parameters()))


def test_weights_handed_to_a_function_are_masked_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            hidden = functional.gelu(functional.linear(x, self.a.weight, self.a.bias))
            return functional.linear(hidden, self.b.weight, self.b.bias)

    net, x = prepared(Functional()), torch.randn(2, 3, dtype=torch.float64)
    narrow = copy.deepcopy(net)
    for name in ("a.weight", "a.bias"):
        take(narrow, name, [0, 4])
    take(narrow, "b.weight", columns=[0, 4])
    assert error_of(net, narrow, x)[0] < 1e-12
