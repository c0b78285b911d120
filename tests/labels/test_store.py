"""The record of a labelling: fresh labels, their owners, and what is said about them."""

import torch

from curlfx.labels.store import LabelStore


def test_fresh_labels_start_at_one_and_know_their_owner():
    store = LabelStore()
    first, second = store.parameter("conv.weight", (4, 3, 1, 1))
    pad = store.fresh(2, "pad", 1, parameter=False)
    assert (first.shape, second.shape) == ((4, 1, 1, 1), (1, 3, 1, 1))
    assert torch.cat([first.flatten(), second.flatten(), pad]).tolist() == list(range(1, 10))
    owners = [store.origin_of(label) for label in (1, 4, 5, 7, 8, 9)]
    assert [(owner.name, owner.axis, owner.parameter) for owner in owners] == [
        ("conv.weight", 0, True),
        ("conv.weight", 0, True),
        ("conv.weight", 1, True),
        ("conv.weight", 1, True),
        ("pad", 1, False),
        ("pad", 1, False),
    ]


def test_ties_are_broadcast_and_trivial_ones_left_out():
    store = LabelStore()
    (labels,) = store.parameter("scale", (3,))
    store.tie(labels, labels, "mul")
    assert not store.ties
    store.tie(labels.view(3, 1), torch.tensor([[7, 8]]), "mul")
    assert (store.ties[0].a.tolist(), store.ties[0].b.tolist()) == ([1, 1, 2, 2, 3, 3], [7, 8] * 3)


def test_projection_aligns_what_it_gives_up():
    store = LabelStore()
    heads = store.fresh(6, "qkv", 0, parameter=True).reshape(1, 2, 3)
    assert store.project(heads, (1, 2), "add") is heads
    assert store.project(heads, (2,), "add").tolist() == [[[7, 8, 9]]]
    aligned = store.alignments[0]
    assert (aligned.a.tolist(), aligned.b.tolist()) == ([1, 2, 3, 4, 5, 6], [7, 8, 9, 7, 8, 9])
    assert not store.ties


def test_only_blocks_are_balanced():
    store = LabelStore()
    store.balance(store.fresh(6, "conv", 0, parameter=True).reshape(1, 6, 1), None, "view")
    assert not store.balances
    store.balance(store.fresh(6, "conv", 0, parameter=True).reshape(2, 3, 1), None, "view")
    assert store.balances[0].matrix.tolist() == [[7, 8, 9], [10, 11, 12]]
    assert store.balances[0].around.tolist() == [0, 0]


def test_blocks_get_labels_once():
    store = LabelStore()
    array = store.fresh(12, "qkv", 0, parameter=True).reshape(2, 3, 2)
    heads, parts = store.blocks(array, "view")
    assert (heads.tolist(), parts.tolist()) == ([[[13], [14], [15]], [[16], [17], [18]]], [[[19]], [[20]]])
    assert [again.tolist() for again in store.blocks(array, "view_1")] == [heads.tolist(), parts.tolist()]
    assert store.size == 21


def test_equal_blocks_get_the_same_label():
    """A batch that heads are merged into repeats them."""
    store = LabelStore()
    array = store.fresh(6, "q", 0, parameter=True).reshape(2, 3).repeat(2, 1)
    (heads,) = store.blocks(array, "view")
    assert heads.tolist() == [[7], [8], [7], [8]]


def test_a_block_within_blocks_has_a_label_of_its_own():
    """Halves of heads: the head is around both."""
    store = LabelStore()
    array = store.fresh(8, "q", 0, parameter=True)
    (heads,) = store.blocks(array.reshape(2, 4), "view")
    halves, again = store.blocks(array.reshape(2, 2, 2), "view_1")
    assert len(set(halves.reshape(-1).tolist())) == 4
    assert set(halves.reshape(-1).tolist()).isdisjoint(heads.reshape(-1).tolist())
    assert again.shape == (2, 1, 1)
