"""What remains of a tensor: shapes and elements, against masks written by hand."""

import numpy as np
import pytest
import torch

from curlfx.errors import InvariantError
from curlfx.labels.compact import compact, kept_along, kept_shape


def alive(total, gone):
    """Mask of channels 0 … total of which some are gone."""
    mask = np.ones(total + 1, dtype=bool)
    mask[list(gone)] = False
    return mask


CHANNELS = np.arange(1, 5).reshape(1, 4, 1)
FEATURES = np.arange(5, 8).reshape(1, 1, 3)
HEADS = np.arange(1, 7).reshape(1, 2, 3)


def test_nothing_goes():
    tensor = torch.randn(2, 4, 3)
    assert compact(tensor, [CHANNELS, FEATURES], alive(7, [])) is tensor
    assert compact(tensor, [], alive(7, [1])) is tensor


def test_axes_lose_their_channels_separately():
    tensor = torch.arange(24).reshape(2, 4, 3)
    result = compact(tensor, [CHANNELS, FEATURES], alive(7, [2, 3, 5]))
    assert torch.equal(result, tensor[:, [0, 3]][:, :, [1, 2]])
    assert kept_shape(tensor.shape, [CHANNELS, FEATURES], alive(7, [2, 3, 5])) == (2, 2, 2)


def test_an_element_goes_when_any_of_its_labels_does():
    """Two arrays along one axis."""
    tensor = torch.arange(4)
    assert compact(tensor, [np.array([1, 1, 2, 2]), np.array([3, 4, 3, 4])], alive(4, [2, 3])).tolist() == [1]


def test_zero_stays():
    assert compact(torch.arange(4), [np.array([0, 1, 0, 2])], alive(2, [1, 2])).tolist() == [0, 2]


def test_blocks_lose_channels_of_their_own():
    tensor = torch.arange(12).reshape(2, 2, 3)
    result = compact(tensor, [HEADS], alive(6, [1, 6]))
    assert result.tolist() == [[[1, 2], [3, 4]], [[7, 8], [9, 10]]]


def test_blocks_beside_an_axis():
    """Columns of a grouped weight differ by its rows' group."""
    weight = torch.arange(16).reshape(4, 4)
    rows = np.array([1, 2, 3, 4]).reshape(4, 1)
    columns = np.array([[5, 6, 7, 8]] * 2 + [[9, 10, 11, 12]] * 2)
    result = compact(weight, [rows, columns], alive(12, [2, 3, 5, 6, 10, 12]))
    assert result.tolist() == [[2, 3], [12, 14]]


def test_what_stays_along_an_axis_by_block():
    kept = kept_along((2, 2, 3), [HEADS], alive(6, [1, 6]), 2)
    assert kept.reshape(2, 3).tolist() == [[False, True, True], [True, True, False]]
    assert kept_along((2, 2, 3), [HEADS], alive(6, [1, 6]), 1).all()


def test_axes_of_size_one_have_no_channels():
    assert kept_shape((1, 4, 3), [CHANNELS], alive(4, [1])) == (1, 3, 3)


@pytest.mark.parametrize(("gone", "message"), [([1], "between 2 and 3"), ([1, 2, 3, 4, 5, 6], "nothing would remain")])
def test_what_the_coupling_should_have_prevented(gone, message):
    with pytest.raises(InvariantError, match=message):
        kept_shape((2, 2, 3), [HEADS], alive(6, gone))
