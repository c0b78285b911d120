"""From a choice of positions per group to the mask of channels that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curlfx.errors import KeepError, did_you_mean

if TYPE_CHECKING:
    from curlfx.coupling.coupling import Group


def alive_mask(groups: Sequence[Group], keep: Mapping[str, Sequence[int]], total: int) -> npt.NDArray[np.bool_]:
    """Mask ``(total + 1,)`` of channels that stay; see :meth:`curlfx.coupling.coupling.Coupling.alive`.

    Raises: KeepError naming the group, what was found and what is wanted.
    """
    known = {group.id: group for group in groups}
    alive = np.ones(total + 1, dtype=bool)
    for name, positions in keep.items():
        if name not in known:
            raise KeepError(f"keep[{name!r}]: no such coupling group{did_you_mean(name, known)}")
        group = known[name]
        kept = _positions(group, positions)
        alive[group.channels] = False
        alive[group.channels[kept]] = True
    return alive


def _positions(group: Group, positions: Sequence[int]) -> npt.NDArray[np.int64]:
    try:
        kept = np.asarray(positions)
    except ValueError as fault:
        raise KeepError(f"keep[{group.id!r}]: want integer positions in [0, {group.width}), found {fault}") from fault
    shown = np.array2string(kept, threshold=12, separator=", ") if kept.size else "()"
    where = f"keep[{group.id!r}] = {shown}"
    if kept.ndim != 1 or not kept.size or not np.issubdtype(kept.dtype, np.integer):
        raise KeepError(f"{where}: want at least one integer position in [0, {group.width})")
    if kept[0] < 0 or kept[-1] >= group.width or (np.diff(kept) <= 0).any():
        raise KeepError(f"{where}: want strictly increasing positions in [0, {group.width})")
    if group.blocks is not None:
        counts = np.bincount(group.blocks[kept], minlength=int(group.blocks.max()) + 1)
        if (counts != counts[0]).any():
            raise KeepError(
                f"{where}: want as many channels in each of its {counts.size} blocks, found {counts.tolist()}"
            )
    return kept.astype(np.int64)
