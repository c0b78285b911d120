"""Keep sets: what they become, and every way in which one can be wrong."""

import re

import numpy as np
import pytest

from curlfx.coupling.coupling import Group, Site
from curlfx.coupling.keep import alive_mask
from curlfx.errors import KeepError

FREE = Group("conv.weight", 4, (Site("conv.weight", 0),), None, False, np.array([1, 2, 3, 4]))
BLOCKS = Group("grouped.weight", 6, (Site("grouped.weight", 0),), np.array([0, 0, 0, 1, 1, 1]), False, np.arange(5, 11))


def alive(keep):
    return np.flatnonzero(alive_mask((FREE, BLOCKS), keep, 10)).tolist()


@pytest.mark.parametrize(
    ("keep", "want"),
    [
        ({}, list(range(11))),
        ({"conv.weight": (0, 3)}, [0, 1, 4, 5, 6, 7, 8, 9, 10]),
        ({"grouped.weight": (0, 5)}, [0, 1, 2, 3, 4, 5, 10]),
        ({"conv.weight": [2], "grouped.weight": np.array([1, 2, 3, 4])}, [0, 3, 6, 7, 8, 9]),
    ],
)
def test_alive(keep, want):
    assert alive(keep) == want


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"conv.weigth": (0,)}, "keep['conv.weigth']: no such coupling group; did you mean 'conv.weight'?"),
        ({"nothing like it": (0,)}, "keep['nothing like it']: no such coupling group"),
        ({"conv.weight": ()}, "keep['conv.weight'] = (): want at least one integer position in [0, 4)"),
        ({"conv.weight": 2}, "keep['conv.weight'] = 2: want at least one integer position in [0, 4)"),
        ({"conv.weight": (0.0, 1.0)}, "keep['conv.weight'] = [0., 1.]: want at least one integer position in [0, 4)"),
        ({"conv.weight": ((0, 1), (2, 3))}, "want at least one integer position in [0, 4)"),
        ({"conv.weight": (True, False, True, True)}, "want at least one integer position in [0, 4)"),
        ({"conv.weight": (1, 0)}, "keep['conv.weight'] = [1, 0]: want strictly increasing positions in [0, 4)"),
        ({"conv.weight": (0, 0)}, "keep['conv.weight'] = [0, 0]: want strictly increasing positions in [0, 4)"),
        ({"conv.weight": (-1, 2)}, "keep['conv.weight'] = [-1,  2]: want strictly increasing positions in [0, 4)"),
        ({"conv.weight": (0, 4)}, "keep['conv.weight'] = [0, 4]: want strictly increasing positions in [0, 4)"),
        (
            {"grouped.weight": (0, 1, 3)},
            "keep['grouped.weight'] = [0, 1, 3]: want as many channels in each of its 2 blocks, found [2, 1]",
        ),
        ({"grouped.weight": (0, 1)}, "want as many channels in each of its 2 blocks, found [2, 0]"),
    ],
)
def test_refused(keep, message):
    with pytest.raises(KeepError, match=re.escape(message)):
        alive(keep)


def test_a_wide_group_is_shown_in_short():
    wide = Group("conv.weight", 500, (Site("conv.weight", 0),), None, False, np.arange(1, 501))
    with pytest.raises(KeepError) as refusal:
        alive_mask((wide,), {"conv.weight": tuple(range(501))}, 500)
    assert str(refusal.value) == (
        "keep['conv.weight'] = [  0,   1,   2, ..., 498, 499, 500]: want strictly increasing positions in [0, 500)"
    )


def test_ragged_positions():
    with pytest.raises(KeepError, match=r"keep\['conv.weight'\]: want integer positions in \[0, 4\), found setting an"):
        alive({"conv.weight": ((0,), (1, 2))})
