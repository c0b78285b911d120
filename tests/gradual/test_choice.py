"""Which channels go at one step, by hand."""

import numpy as np
import pytest

from curlfx.gradual.choice import next_removed
from curlfx.planning.budget import Ranking
from curlfx.planning.units import Ints, Units, rank_globally, rank_uniformly


def units(*scores: list[float]) -> Units:
    """Groups of single channels with these scores, lowest first."""
    sizes = np.array([len(group) for group in scores], np.int64)
    group = np.repeat(np.arange(sizes.size), sizes)
    rank = np.concatenate([np.arange(size) for size in sizes])
    channels = np.arange(1, sizes.sum() + 1)
    return Units(
        ids=tuple(f"g{number}" for number in range(sizes.size)), sizes=sizes, blocks=np.ones_like(sizes),
        whole=np.zeros(sizes.size, bool), inside=((),) * sizes.size, group=group, rank=rank,
        score=np.concatenate([np.array(one, float) for one in scores]), channels=channels, channel_group=group,
        channel_rank=rank,
    )  # fmt: skip


def chosen(
    found: Units,
    limit: float,
    prices: list[float],
    gone: list[int],
    step: int = 1,
    ranking: Ranking = rank_globally,
) -> list[int]:
    """What is gone once no more than ``limit`` of all prices is left."""
    whole = float((found.sizes * prices).sum())

    def met(removed: Ints) -> bool:
        return whole - float((removed * prices).sum()) <= limit

    caps, steps = found.sizes - 1, np.full_like(found.sizes, step)
    back = ranking is rank_globally
    removed: list[int] = next_removed(found, np.array(gone), caps, steps, ranking, None, met, give_back=back).tolist()
    return removed


CHEAP = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("limit", "gone", "expected"),
    [
        (45.0, [0, 0], [3, 0]),  # 48 in all, one each: nothing is overshot
        (26.0, [0, 0], [2, 1]),  # the dear one saves 20; two cheap ones of the six before it are enough beside it
        (28.0, [0, 0], [0, 1]),  # alone it is enough
        (26.0, [4, 0], [4, 1]),  # what went before does not come back
        (48.0, [0, 0], [0, 0]),
    ],
)
def test_gives_back_what_need_not_go(limit: float, gone: list[int], expected: list[int]) -> None:
    network = units(CHEAP, [6.5, 9.0])
    assert chosen(network, limit, [1.0, 20.0], gone) == expected


def test_gives_back_in_multiples() -> None:
    """Of 8 and 8 in fours; 16 at 1 and 3 each: 32 in all, the second group's four save 12."""
    network = units(CHEAP, [4.5, 4.6, 4.7, 4.8, 9.0, 9.0, 9.0, 9.0])
    assert chosen(network, 20.0, [1.0, 3.0], [0, 0], step=4) == [0, 4]
    assert chosen(network, 16.0, [1.0, 3.0], [0, 0], step=4) == [4, 4]


def test_gives_the_best_back_first() -> None:
    """One of the first two groups is enough beside the dear one: the one with the lower score goes."""
    network = units([1.0, 9.0], [2.0, 9.0], [3.0, 9.0])
    assert chosen(network, 13.0, [1.0, 1.0, 10.0], [0, 0, 0]) == [1, 0, 1]


@pytest.mark.parametrize(
    ("limit", "gone", "expected"),
    [
        (9.0, [0, 0], [2, 1]),  # 12 in all; every second unit of the first counts as much as one of the second
        (6.0, [2, 1], [4, 2]),
        (6.0, [3, 0], [4, 2]),  # the second group makes up for what it has not given
        (6.0, [6, 0], [6, 0]),  # what went before does not come back
    ],
)
def test_takes_the_same_share_of_every_group(limit: float, gone: list[int], expected: list[int]) -> None:
    network = units(CHEAP, [90.0, 91.0, 92.0, 93.0])
    assert chosen(network, limit, [1.0, 1.0], gone, ranking=rank_uniformly) == expected
