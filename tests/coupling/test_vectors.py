"""Vectors of labels against what numpy and networkx say."""

import networkx as nx
import numpy as np
import pytest

from curlfx.coupling.surroundings import surroundings
from curlfx.coupling.vectors import among, distinct, distinct_rows, merged


@pytest.mark.parametrize("size", [0, 1, 50])
def test_distinct_and_among(size):
    random = np.random.default_rng(0)
    values, known = random.integers(0, 20, size), random.integers(0, 20, 7)
    assert distinct(values).tolist() == sorted(set(values.tolist()))
    assert among(values, known).tolist() == [value in known.tolist() for value in values.tolist()]
    assert not among(values, known[:0]).any()


def test_distinct_rows_keep_the_order_of_their_first_elements():
    assert distinct_rows(np.array([[3, 1], [2, 9], [3, 0], [2, 9]])).tolist() == [[2, 9], [3, 1], [3, 0]]


def test_merged_in_two_steps_is_connected_components():
    random = np.random.default_rng(0)
    edges = random.integers(0, 60, (2, 45))
    found = merged(merged(np.arange(60), (edges[0, :30], edges[1, :30])), (edges[0, 30:], edges[1, 30:]))
    graph = nx.Graph(edges.T.tolist())
    graph.add_nodes_from(range(60))
    wanted = {node: min(part) for part in nx.connected_components(graph) for node in part}
    assert found.tolist() == [wanted[node] for node in range(60)]


def test_labels_in_the_same_blocks_share_a_row():
    found = surroundings((np.array([1, 1, 2, 4, 4]), np.array([5, 7, 5, 5, 7])), 8)
    assert found.around(np.arange(8)).tolist() == [[0, 0], [5, 7], [5, 0], [0, 0], [5, 7], [0, 0], [0, 0], [0, 0]]
    assert len(found.blocks) == 3
    assert found.depth.tolist() == [0, 2, 1, 0, 2, 0, 0, 0]
    position, block = found.pairs(np.array([2, 4, 3]))
    assert list(zip(position.tolist(), block.tolist(), strict=True)) == [(0, 5), (1, 5), (1, 7)]
