"""Vectors of labels: the different ones, and what is connected."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from curlfx.labels.compact import Bools

Ints = npt.NDArray[np.int64]
Edges = tuple[Ints, Ints]


def distinct(values: Ints) -> Ints:
    """The different values, ascending ``(k,)``.

    By sorting: the hash table behind ``np.unique`` and ``np.isin`` takes minutes for regular numbers like ours.
    """
    line = np.sort(values, axis=None)
    return line[np.flatnonzero(np.diff(line, prepend=line[:1] - 1))]


def among(values: Ints, known: Ints) -> Bools:
    """Which values ``(n,)`` occur in ``known`` ``(k,)``, in any order."""
    line = np.sort(known, axis=None)
    if not line.size:
        return np.zeros(values.shape, dtype=bool)
    place = np.minimum(np.searchsorted(line, values), line.size - 1)
    return np.asarray(line[place] == values)


def distinct_rows(matrix: Ints) -> Ints:
    """The different rows of a matrix ``(k, columns)``, by their first element, then by where they came first."""
    found = {row.tobytes(): index for index, row in reversed(list(enumerate(matrix)))}
    rows = matrix[sorted(found.values())]
    return np.asarray(rows[np.argsort(rows[:, 0], kind="stable")])


def merged(smallest: Ints, edges: Edges) -> Ints:
    """The smallest label of every component ``(labels,)`` once more edges connect them.

    Args:
        smallest: ``(labels,)`` the smallest label of every component so far.
        edges: Vectors ``(n,)`` of labels.
    """
    a, b = smallest[edges[0]], smallest[edges[1]]
    apart = a != b
    if not apart.any():
        return smallest
    a, b = a[apart], b[apart]
    met = np.zeros(smallest.size, dtype=bool)
    met[a] = met[b] = True
    nodes = np.flatnonzero(met)
    place = np.cumsum(met) - 1
    graph = coo_array((np.ones(a.size, np.int8), (place[a], place[b])), shape=(nodes.size, nodes.size))
    count, component = connected_components(graph, directed=False)
    first = np.full(count, smallest.size, np.int64)
    np.minimum.at(first, component, nodes)
    joined = np.arange(smallest.size)
    joined[nodes] = first[component]
    return joined[smallest]
