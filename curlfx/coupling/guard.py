"""Which tensors could lose everything, although every group keeps some: one of their channels has to stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from curlfx.coupling.nesting import Ints
from curlfx.coupling.resolve import Resolved, distinct
from curlfx.labels.store import Freeze

_LAST = "nothing would be left of a part of the channels"


def unguarded(parts: Sequence[tuple[str, Ints]], classes: Ints, resolved: Resolved) -> list[Freeze]:
    """Freezes of one channel for every part that the groups do not keep from becoming empty.

    Every group keeps a channel of each of its blocks. So a part is safe that holds a channel that stays, all of a
    group, or a whole block; within blocks that can go themselves, where this holds for a whole group of such blocks.

    Args:
        parts: FX nodes and the labels ``(n,)`` of an axis.
        classes: ``(labels,)`` group of every root, 0 for what stays.
        resolved: Roots and blocks.
    """
    roots = distinct(resolved.roots)
    sizes = np.bincount(classes[roots[roots > 0]], minlength=int(classes.max()) + 1)
    block_of, widths = _block_numbers(resolved)
    found: dict[int, str] = {}
    for node, raw in parts:
        labels = raw.reshape(-1)
        if not _safe(labels, classes, sizes, (block_of, widths), resolved):
            found.setdefault(int(labels[0]), node)
    return [Freeze(torch.tensor([label]), node, _LAST) for label, node in found.items()]


def _safe(labels: Ints, classes: Ints, sizes: Ints, blocks: tuple[Ints, Ints], resolved: Resolved) -> bool:
    own = resolved.roots[labels]
    around, place = np.unique(resolved.outer[labels], axis=0, return_inverse=True)
    pairs = distinct(place.reshape(-1) * resolved.roots.size + own)
    place, own = pairs // resolved.roots.size, pairs % resolved.roots.size
    certain = [place[own == 0]]
    for numbers, wanted in ((classes, sizes), blocks):
        counted = (own > 0) & (numbers[own] >= 0)
        keys, count = np.unique(place[counted] * (wanted.size + 1) + numbers[own[counted]], return_counts=True)
        certain.append(keys[count == wanted[keys % (wanted.size + 1)]] // (wanted.size + 1))
    outer = around[np.concatenate(certain)]
    if not outer.size or (outer == 0).all(axis=1).any():
        return bool(len(outer))
    held = np.bincount(classes[distinct(outer[outer > 0])], minlength=sizes.size)
    return bool(((held == 0) | (held == sizes)).all())


def _block_numbers(resolved: Resolved) -> tuple[Ints, Ints]:
    """Number of every root's block ``(labels,)``, -1 for none, and how many channels each block has."""
    number = np.full(resolved.roots.size, -1, np.int64)
    widths: list[int] = []
    for rows in resolved.blocks:
        number[rows] = len(widths) + np.arange(rows.shape[0])[:, None]
        widths.extend([rows.shape[1]] * rows.shape[0])
    return number, np.array(widths, np.int64)
