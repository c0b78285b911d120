"""Ties, freezes and blocks, settled: from labels written by hand."""

import numpy as np
import pytest
import torch

from curlfx.coupling.places import Places
from curlfx.coupling.resolve import resolve
from curlfx.coupling.vectors import distinct, distinct_rows
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
    store.balance(a.reshape(2, 3), None, "view")
    (blocks,) = resolve(store).blocks
    assert blocks.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_the_same_blocks_asked_for_twice():
    store, (a, b) = labelled(6, 6)
    store.tie(a, b, "add")
    store.balance(a.reshape(2, 3), None, "view")
    store.balance(b.reshape(2, 3).repeat(2, 1), None, "view_1")
    assert len(resolve(store).blocks) == 1


def test_blocks_within_blocks_are_the_finer_ones():
    store, (a,) = labelled(8)
    store.balance(a.reshape(2, 4), None, "view")
    store.balance(a.reshape(4, 2), None, "view_1")
    resolved = resolve(store)
    assert [blocks.tolist() for blocks in resolved.blocks] == [[[1, 2], [3, 4], [5, 6], [7, 8]]]
    assert resolved.roots[a.numpy()].tolist() == a.tolist()


def test_blocks_that_cross_keep_like_positions():
    """Two by three against three by two: whatever goes, every row of both cuts must lose alike."""
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), None, "view")
    store.balance(a.reshape(3, 2), None, "view_1")
    resolved = resolve(store)
    assert not resolved.blocks
    assert len(set(resolved.roots[a.numpy()].tolist())) == 1


def test_blocks_of_a_shuffle_keep_like_positions():
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), None, "view")
    store.balance(a.reshape(2, 3).T, None, "view_1")
    resolved = resolve(store)
    for cut in (a.reshape(2, 3), a.reshape(2, 3).T):
        counts = (resolved.roots[cut.numpy()] == resolved.roots[1]).sum(axis=1)
        assert len(set(counts.tolist())) == 1


def test_a_block_with_a_frozen_channel_is_aligned():
    store, (a,) = labelled(6)
    store.balance(a.reshape(2, 3), None, "view")
    store.freeze(a[:1], "output", "an output")
    resolved = resolve(store)
    assert not resolved.blocks
    assert resolved.roots[a.numpy()].tolist() == [0, 2, 3, 0, 2, 3]


def test_a_row_that_repeats_a_channel_is_aligned():
    store, (a,) = labelled(3)
    store.balance(a[[0, 0, 1, 2]].reshape(2, 2), None, "index")
    assert roots(store, a) == [1, 1, 1]


def test_a_block_has_a_label_and_its_channels_go_with_it():
    store, (a,) = labelled(6)
    (heads,) = store.blocks(a.reshape(2, 3), "view")
    resolved = resolve(store)
    assert resolved.outer.around(a.numpy()).tolist() == [[7], [7], [7], [8], [8], [8]]
    assert resolved.roots[heads.numpy()].reshape(-1).tolist() == [7, 8]
    assert np.flatnonzero(resolved.rows).tolist() == [7, 8]
    assert Places([a[:2].numpy()], resolved).members[1].tolist() == [1, 2, 7]


def test_aligned_channels_stay_alike_in_blocks_that_go_by_themselves():
    store, (a, b) = labelled(6, 3)
    store.blocks(a.reshape(2, 3), "view")
    shared = store.project(a.reshape(2, 3), (1,), "mul")
    store.tie(shared.reshape(-1), b, "mul")
    resolved = resolve(store)
    assert resolved.roots[a.numpy()].tolist() == resolved.roots[b.numpy()].tolist() * 2
    assert resolved.outer.around(b.numpy()).tolist() == [[0]] * 3
    assert len(set(resolved.outer.around(a.numpy()).reshape(-1).tolist())) == 2


def test_two_cuts_into_the_same_blocks_are_one():
    store, (a, b) = labelled(6, 6)
    first, second = store.blocks(a.reshape(2, 3), "view"), store.blocks(b.reshape(2, 3), "view_1")
    store.tie(a, b, "add")
    roots = resolve(store).roots
    assert roots[first[0].numpy()].tolist() == roots[second[0].numpy()].tolist()


def test_small_blocks_go_with_the_large_ones_around_them():
    store, (a,) = labelled(8)
    store.blocks(a.reshape(2, 4), "view")
    small = store.fresh(4, "view_1", 0, parameter=False)
    store.nest(a.reshape(4, 2), small.reshape(4, 1), "view_1")
    store.balance(a.reshape(4, 2), small.reshape(4, 1), "view_1")
    resolved = resolve(store)
    assert resolved.outer.around(a.numpy()).tolist() == [[9, 11]] * 2 + [[9, 12]] * 2 + [[10, 13]] * 2 + [[10, 14]] * 2
    assert [[11, 12], [13, 14]] in [blocks.tolist() for blocks in resolved.blocks]


def test_a_block_that_cuts_through_the_rows_of_another_cut_stays():
    store, (a,) = labelled(6)
    halves, thirds = store.blocks(a.reshape(2, 3), "view")[0], store.fresh(3, "view_1", 0, parameter=False)
    store.nest(a.reshape(3, 2), thirds.reshape(3, 1), "view_1")
    store.balance(a.reshape(3, 2), thirds.reshape(3, 1), "view_1")
    resolved = resolve(store)
    assert not resolved.roots[halves.numpy()].any()
    assert not resolved.roots[thirds.numpy()].any()
    assert any(freeze.reason == "blocks of different cuts overlap here" for freeze in resolved.freezes)


def test_what_pins_channels_by_name_pins_their_blocks_but_what_pins_them_by_block_does_not():
    for whole in (True, False):
        store, (a,) = labelled(6)
        (heads,) = store.blocks(a.reshape(2, 3), "view")
        store.freeze(a if whole else a.reshape(2, 3), "softmax", "a softmax runs over these")
        resolved = resolve(store)
        assert not resolved.roots[a.numpy()].any()
        assert resolved.roots[heads.numpy()].all() == (not whole)


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
