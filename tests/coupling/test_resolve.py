"""Ties, freezes and blocks, settled: from labels written by hand."""

import numpy as np
import pytest
import torch

from curlfx.coupling.resolve import distinct, distinct_rows, resolve
from curlfx.labels.store import LabelStore


def labelled(*sizes: int, made: bool = True) -> tuple[LabelStore, list[torch.Tensor]]:
    """A store with one parameter axis per size; all of them made by a layer."""
    store = LabelStore()
    labels = [store.fresh(size, f"p{index}", 0, parameter=True) for index, size in enumerate(sizes)]
    if made:
        store.producers.extend(labels)
    return store, labels


def roots(store, labels):
    return resolve(store).roots[labels.numpy()].tolist()


def test_ties_merge_into_the_smallest_label():
    store, (a, b, c) = labelled(3, 3, 3)
    store.tie(b, a, "add")
    store.tie(c, b, "add")
    assert roots(store, c) == [1, 2, 3]


def test_a_frozen_label_freezes_its_component():
    store, (a, b) = labelled(3, 3)
    store.tie(a, b, "add")
    store.freeze(b[1:2], "output", "an output")
    assert roots(store, a) == [1, 0, 3]


def test_a_tie_to_nothing_freezes():
    store, (a,) = labelled(3)
    store.tie(a, torch.tensor([0, 0, 3]), "cat")
    resolved = resolve(store)
    assert resolved.roots[a.numpy()].tolist() == [0, 0, 3]
    assert [(freeze.node, freeze.reason) for freeze in resolved.freezes] == [
        ("cat", "joined with channels that have no labels")
    ]


def test_what_no_layer_makes_stays():
    store, (a, b) = labelled(2, 2, made=False)
    store.producers.append(a)
    resolved = resolve(store)
    assert resolved.roots[b.numpy()].tolist() == [0, 0]
    assert resolved.freezes[-1].reason == "no layer computes these channels"


def test_blocks():
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), "view")
    (blocks,) = resolve(store).blocks
    assert blocks.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_the_same_blocks_asked_for_twice():
    store, (a, b) = labelled(6, 6)
    store.tie(a, b, "add")
    store.balance(a.reshape(2, 3), "view")
    store.balance(b.reshape(2, 3).repeat(2, 1), "view_1")
    assert len(resolve(store).blocks) == 1


def test_blocks_within_blocks_are_the_finer_ones():
    store, (a,) = labelled(8)
    store.balance(a.reshape(2, 4), "view")
    store.balance(a.reshape(4, 2), "view_1")
    resolved = resolve(store)
    assert [blocks.tolist() for blocks in resolved.blocks] == [[[1, 2], [3, 4], [5, 6], [7, 8]]]
    assert resolved.roots[a.numpy()].tolist() == a.tolist()


def test_blocks_that_cross_are_tied():
    """Two by three against three by two: whatever goes, every row of both cuts must lose alike."""
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), "view")
    store.balance(a.reshape(3, 2), "view_1")
    resolved = resolve(store)
    assert not resolved.blocks
    assert len(set(resolved.roots[a.numpy()].tolist())) == 1


def test_blocks_of_a_shuffle_are_tied_position_by_position():
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), "view")
    store.balance(a.reshape(2, 3).T, "view_1")
    resolved = resolve(store)
    for cut in (a.reshape(2, 3), a.reshape(2, 3).T):
        counts = (resolved.roots[cut.numpy()] == resolved.roots[1]).sum(axis=1)
        assert len(set(counts.tolist())) == 1


def test_a_block_with_a_frozen_channel_is_tied():
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), "view")
    store.freeze(a[:1], "output", "an output")
    resolved = resolve(store)
    assert not resolved.blocks
    assert resolved.roots[a.numpy()].tolist() == [0, 2, 3, 0, 2, 3]


def test_a_row_that_repeats_a_channel_is_tied():
    store, (a,) = labelled(3)
    store.balance(a[[0, 0, 1, 2]].reshape(2, 2), "index")
    assert roots(store, a) == [1, 1, 1]


def test_statistics_are_of_roots():
    store, (a, b) = labelled(2, 2)
    store.tie(a, b, "add")
    store.statistics.append(b)
    store.freeze(a[:1], "output", "an output")
    assert np.flatnonzero(resolve(store).statistics).tolist() == [2]


@pytest.mark.parametrize("values", [[], [3], [3, 1, 3, 2], [[2, 2], [1, 0]], [0, 0]])
def test_distinct(values):
    array = np.array(values, np.int64)
    assert distinct(array).tolist() == np.unique(array).tolist()


def test_distinct_rows():
    matrix = np.array([[4, 1], [2, 2], [4, 1], [2, 1], [2, 2]])
    assert distinct_rows(matrix).tolist() == [[2, 2], [2, 1], [4, 1]]
