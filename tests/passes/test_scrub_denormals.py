"""`ScrubDenormals` zeroes what is too small to matter, and copies only that."""

import pytest
import torch

from curlfx.errors import UsageError
from curlfx.graph import show, trace
from curlfx.passes.pipeline import run
from curlfx.passes.scrub_denormals import ScrubDenormals
from tests.graph.networks import Small, randomise


@pytest.fixture
def traced():
    return trace(randomise(Small()), torch.randn(1, 3, 6, 6))


def test_tiny_values_become_zero_and_others_stay(traced):
    values = torch.tensor([1e-31, -1e-40, 2e-30, -1.0])
    traced.set_parameter("bn.bias", values)
    text = show(traced)
    result = ScrubDenormals()(traced)
    assert result.parameter("bn.bias").tolist() == torch.tensor([0.0, 0.0, 2e-30, -1.0]).tolist()
    assert torch.equal(traced.parameter("bn.bias"), values)
    assert show(result) == show(traced) == text


def test_only_what_changes_is_copied(traced):
    traced.set_parameter("bn.running_var", torch.tensor([1e-31, 1.0, 1.0, 1.0]))
    result, records = run(traced, [ScrubDenormals()], own_weights=False)
    theirs = traced.tensors()
    assert [name for name, t in result.tensors().items() if t is not theirs[name]] == ["bn.running_var"]
    assert records[0].changed


def test_an_ordinary_network_is_left_alone(traced):
    assert not run(traced, [ScrubDenormals()])[1][0].changed


def test_zero_and_nan_do_not_count(traced):
    traced.set_parameter("bn.bias", torch.tensor([0.0, float("nan"), float("inf"), 1.0]))
    assert not run(traced, [ScrubDenormals()])[1][0].changed


@pytest.mark.parametrize("threshold", [0.0, -1e-30, 1e-3, float("nan"), float("inf")])
def test_a_threshold_that_means_nothing(traced, threshold):
    with pytest.raises(UsageError, match=r"scrub-denormals: threshold = .*: want a number in \(0, 1e-10\]"):
        ScrubDenormals(threshold)(traced)
