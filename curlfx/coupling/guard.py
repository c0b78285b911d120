"""Which tensors could lose everything, although every group keeps some: one of their channels has to stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from curlfx.coupling.places import Places
from curlfx.coupling.resolve import Resolved
from curlfx.coupling.vectors import Ints, distinct
from curlfx.labels.store import Freeze

_LAST = "nothing would be left of a part of the channels"


def unguarded(parts: Sequence[tuple[str, Ints]], places: Places, classes: Ints, resolved: Resolved) -> list[Freeze]:
    """Freezes of one channel for every part that the groups do not keep from becoming empty.

    Every group keeps a channel of each of its blocks. So a part is safe that holds a channel that stays, all of a
    group, or a whole block; within blocks that can go themselves, where this holds for a whole group of such blocks.

    Args:
        parts: FX nodes and the labels ``(n,)`` of an axis.
        places: The same arrays as sets of channels, maybe with others.
        classes: ``(labels,)`` group of every root, 0 for what stays.
        resolved: Roots and blocks.
    """
    roots = distinct(resolved.roots)
    sizes = np.bincount(classes[roots[roots > 0]], minlength=int(classes.max()) + 1)
    certain = _certain(places, ((classes, sizes), _block_numbers(resolved)), resolved)
    asked = sorted(set(places.of[: len(parts)]))
    number, which = np.divmod(certain, len(resolved.outer.blocks))
    safe = np.zeros(len(places.first), dtype=bool)
    safe[number[which == 0]] = True
    for one in distinct(number[~safe[number]]).tolist():
        blocks = resolved.outer.blocks[which[number == one]]
        held = np.bincount(classes[distinct(blocks[blocks > 0])], minlength=sizes.size)
        safe[one] = ((held == 0) | (held == sizes)).all()
    found: dict[int, str] = {}
    for one in asked:
        if not safe[one]:
            node, raw = parts[places.first[one]]
            found.setdefault(int(raw.reshape(-1)[0]), node)
    return [Freeze(torch.tensor([label]), node, _LAST) for label, node in found.items()]


def _certain(places: Places, wholes: Sequence[tuple[Ints, Ints]], resolved: Resolved) -> Ints:
    """Sets, times the number of different surroundings, plus surroundings in which something of the set stays.

    Args:
        places: The sets.
        wholes: Of groups and of blocks: the number of each root's ``(labels,)``, below 0 for none, and their sizes.
        resolved: Roots and blocks.
    """
    number, codes = places.held
    own, which = np.divmod(codes, len(resolved.outer.blocks))
    place = number * len(resolved.outer.blocks) + which
    certain = [place[own == 0]]
    for numbers, wanted in wholes:
        counted = (own > 0) & (numbers[own] >= 0)
        keys, count = np.unique(place[counted] * (wanted.size + 1) + numbers[own[counted]], return_counts=True)
        certain.append(keys[count == wanted[keys % (wanted.size + 1)]] // (wanted.size + 1))
    return distinct(np.concatenate(certain))


def _block_numbers(resolved: Resolved) -> tuple[Ints, Ints]:
    """Number of every root's block ``(labels,)``, -1 for none, and how many channels each block has."""
    number = np.full(resolved.roots.size, -1, np.int64)
    widths: list[int] = []
    for rows in resolved.blocks:
        number[rows] = len(widths) + np.arange(rows.shape[0])[:, None]
        widths.extend([rows.shape[1]] * rows.shape[0])
    return number, np.array(widths, np.int64)
