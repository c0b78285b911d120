"""Label arrays: where they vary, and how they are laid out."""

import pytest
import torch

from curlfx.labels.arrays import (
    align,
    along,
    ascending,
    compress,
    different_columns,
    different_rows,
    empty_like_axis,
    first_along,
    flat,
    rows,
    support,
)


@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 4, 1, 1), (1,)), ((1, 1, 2, 3), (2, 3)), ((1, 1), ()), ((), ()), ((5,), (0,))]
)
def test_support(shape, axes):
    assert support(torch.zeros(shape)) == axes


def test_compress_shrinks_what_does_not_vary():
    labels = along(torch.tensor([1, 2, 3]), 3, 1)
    assert compress(labels.expand(4, 3, 5)).shape == (1, 3, 1)  # by its strides
    assert compress(labels.expand(4, 3, 5).contiguous()).shape == (1, 3, 1)  # by its values
    assert torch.equal(compress(labels.expand(4, 3, 5).contiguous()), labels)
    assert compress(torch.full((2, 2), 7)).tolist() == [[7]]


def test_compress_keeps_what_varies_anywhere():
    array = torch.zeros(3, 4, dtype=torch.int64)
    array[2, 3] = 1
    assert compress(array) is array


def test_along_and_flat_are_inverse():
    labels = torch.tensor([4, 5, 6])
    assert along(labels, 4, 1).shape == (1, 3, 1, 1)
    assert along(labels, 2, -1).shape == (1, 3)
    assert torch.equal(flat(along(labels, 4, 2)), labels)


def test_align_prepends():
    assert align(torch.zeros(3, 1), 4).shape == (1, 1, 3, 1)
    array = torch.zeros(3, 1)
    assert align(array, 2) is array


def test_first_along():
    array = torch.arange(24).reshape(2, 3, 4)
    assert first_along(array, (0, 2)).tolist() == [[[0], [4], [8]]]
    assert first_along(array, ()) is array


def test_rows_end_in_the_innermost_varying_axis():
    array = torch.arange(6).reshape(1, 2, 1, 3)
    assert rows(array).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert rows(torch.arange(8).reshape(2, 2, 2)).shape == (4, 2)
    assert rows(along(torch.arange(3), 3, 1)).tolist() == [[0, 1, 2]]
    assert rows(torch.zeros(1, 1)).shape == (1, 1)


def test_an_axis_without_labels():
    array = empty_like_axis(3, 4, 1)
    assert (array.shape, array.dtype, int(array.abs().sum())) == ((1, 3, 1, 1), torch.int64, 0)


@pytest.mark.parametrize("rows", [[[3, 4], [1, 2]], [[3, 4], [1, 2], [3, 4]], [[3, 4], [3, 5], [1, 2], [3, 4]]])
def test_different_rows(rows):
    matrix = torch.tensor(rows)
    values, which = torch.unique(matrix, dim=0, return_inverse=True)
    count, found = different_rows(matrix)
    assert count == len(values)
    assert found.tolist() == which.tolist()


@pytest.mark.parametrize(("values", "expected"), [([], True), ([3], True), ([0, 2, 5], True), ([1, 1], False)])
def test_ascending(values, expected):
    assert ascending(torch.tensor(values)) is expected


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_different_columns(rows):
    matrix = torch.randint(0, 3, (rows, 40), generator=torch.Generator().manual_seed(rows))
    wanted, inverse = torch.unique(matrix, dim=1, return_inverse=True)
    place, which = different_columns(matrix, 3)
    assert matrix[:, place].tolist() == wanted.tolist()
    assert which.tolist() == inverse.tolist()
