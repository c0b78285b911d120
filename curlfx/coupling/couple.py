"""Find the coupling groups of a traced network."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curlfx.coupling.cells import number_cells
from curlfx.coupling.coupling import Coupling, Frozen, Group, Site
from curlfx.coupling.guard import unguarded
from curlfx.coupling.places import Places
from curlfx.coupling.propagate import Labelling, Unsupported, propagate_labels
from curlfx.coupling.resolve import Resolved, resolve
from curlfx.coupling.vectors import Ints, among, distinct
from curlfx.errors import KeepError, did_you_mean
from curlfx.graph.traced import TracedModel
from curlfx.labels.arrays import support
from curlfx.ops.call import is_getitem
from curlfx.ops.table import Rule

_PICKING = (["slice"], ["narrow"], ["select"], ["index_select"], ["index"])

SiteRoots = list[tuple[Site, Ints, bool]]
"""Every site with the raw labels that lie along it, and whether a layer produces them."""


def couple(traced: TracedModel, *, frozen: Sequence[str] = (), rules: Mapping[Any, Rule] | None = None) -> Coupling:
    """Label every tensor, merge what is tied, and form coupling groups.

    Args:
        traced: A network from :func:`curlfx.trace`.
        frozen: Parameters or modules to leave alone, by name or pattern (``"layer4"``, ``"*.conv2.weight"``).
        rules: Label rules for custom ops, by ``OpOverload`` or ``"namespace::op"``.

    Raises: KeepError for a name in ``frozen`` that matches nothing.
    """
    labelling = propagate_labels(traced, rules)
    names = [str(node.target) for node in labelling.emissions if node.op == "get_attr"]
    for pattern in frozen:
        _freeze_named(pattern, names, labelling)
    sites, parts = _sites(labelling), _parts(labelling)
    parts = [("", raw) for _, raw, _ in sites] + parts
    resolved = resolve(labelling.store)
    while True:
        places = Places([raw for _, raw in parts] + list(resolved.blocks), resolved)
        signatures = _signatures(places, resolved)
        classes = _classes(signatures, resolved)
        if mixed := _mixed(resolved, signatures):
            for blocks in mixed:
                labelling.store.align(torch.from_numpy(blocks), torch.from_numpy(blocks[:1]), "")
        elif bare := unguarded(parts, places, classes, resolved):
            labelling.store.freezes.extend(bare)
        else:
            break
        resolved = resolve(labelling.store)
    groups, channel_of = _groups(sites, places, classes, resolved)
    cells = number_cells(channel_of, resolved)
    stuck = _frozen(sites, resolved)
    made = sum(raw.size for _, raw, produced in sites if produced)
    return Coupling(traced, labelling, groups, stuck, _unsupported(labelling, resolved), cells, made)


def _freeze_named(pattern: str, names: Sequence[str], labelling: Labelling) -> None:
    found = {n for n in names if any(fnmatch.fnmatchcase(prefix, pattern) for prefix in _with_modules(n))}
    if not found:
        hint = did_you_mean(pattern, [*names, *sorted({n.rpartition(".")[0] for n in names})])
        raise KeepError(f"frozen: {pattern!r} names no parameter or module of the network{hint}")
    for node, emission in labelling.emissions.items():
        if node.op == "get_attr" and str(node.target) in found:
            for array in emission:
                if not isinstance(array, tuple):
                    labelling.store.freeze(array, node.name, f"frozen by the user ({pattern})")


def _with_modules(name: str) -> list[str]:
    """A parameter's name and those of the modules it is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _sites(labelling: Labelling) -> SiteRoots:
    produced = np.zeros(labelling.store.size, dtype=bool)
    for labels in labelling.store.producers:
        produced[labels.numpy()] = True
    result: SiteRoots = []
    seen: set[str] = set()
    for node, emission in labelling.emissions.items():
        if node.op != "get_attr" or str(node.target) in seen or isinstance(emission, list):
            continue
        seen.add(str(node.target))
        final = labelling.store.relabelled.get(str(node.target), emission)
        for array in final:
            if not isinstance(array, tuple):
                raw = distinct(array.numpy())
                result.append((Site(str(node.target), support(array)[-1]), raw, bool(produced[raw].all())))
    return result


def _parts(labelling: Labelling) -> list[tuple[str, Ints]]:
    """Labels of tensors that hold some of another's channels: at least one of each must stay, so they form groups."""
    return [
        (node.name, array.numpy())
        for node, emission in labelling.emissions.items()
        if isinstance(emission, tuple) and (is_getitem(node) or str(node.target).split(".")[1:2] in _PICKING)
        for array in emission
    ]


def _signatures(places: Places, resolved: Resolved) -> npt.NDArray[np.uint64]:
    """For every root a number ``(labels,)`` that tells where it occurs, 0 for frozen."""
    random = np.random.default_rng(0)
    signature = np.zeros(resolved.roots.size, np.uint64)
    number, member = places.members
    np.add.at(signature, member, random.integers(1, 2**63, size=len(places.first), dtype=np.uint64)[number])
    depth = np.zeros(resolved.roots.size, np.int64)
    np.maximum.at(depth, resolved.roots, resolved.outer.depth)
    levels = random.integers(1, 2**63, size=resolved.outer.blocks.shape[1] + 1, dtype=np.uint64)
    signature[resolved.rows] += levels[depth[resolved.rows]]
    signature[0] = 0
    return signature


def _mixed(resolved: Resolved, signature: npt.NDArray[np.uint64]) -> list[Ints]:
    """Blocks that hold channels of different places: equal counts would not leave one of each, equal positions do."""
    return [blocks for blocks in resolved.blocks if (signature[blocks] != signature[blocks[:, :1]]).any()]


def _classes(signature: npt.NDArray[np.uint64], resolved: Resolved) -> Ints:
    """For every root a class ``(labels,)``, 0 for frozen: one for roots of the same sites, or of shared blocks."""
    live = distinct(resolved.roots)
    keys, inverse = np.unique(signature[live], return_inverse=True)
    classes = np.zeros(resolved.roots.size, np.int64)
    classes[live] = inverse + 1
    classes[0] = 0
    merged = np.arange(keys.size + 2)
    for rows in resolved.blocks:
        touched = distinct(merged[classes[rows]])
        merged[among(merged, touched)] = touched[0]
    return np.asarray(merged[classes], np.int64)


def _groups(sites: SiteRoots, places: Places, classes: Ints, resolved: Resolved) -> tuple[tuple[Group, ...], Ints]:
    """Groups in order of their first parameter, and the channel number of every raw label's root ``(labels,)``."""
    located: dict[int, list[Site]] = {}
    named: dict[int, Site] = {}
    held = [found.tolist() for found in places.split(classes)]
    for (site, _, produced), place in zip(sites, places.of, strict=False):
        for found in held[place]:
            if found:
                located.setdefault(found, []).append(site)
                if produced:
                    named.setdefault(found, site)
    roots = distinct(resolved.roots)
    roots = roots[classes[roots] > 0]
    order = roots[np.lexsort((roots, classes[roots]))]
    starts = np.flatnonzero(np.diff(classes[order])) + 1
    members = sorted(np.split(order, starts), key=lambda found: int(found[0])) if order.size else []
    block_of = np.full(resolved.roots.size, -1, np.int64)
    for rows in resolved.blocks:
        block_of[rows] = np.arange(rows.shape[0])[:, None]
    number = np.zeros(resolved.roots.size, np.int64)
    groups: list[Group] = []
    used: dict[str, int] = {}
    for found in members:
        key = int(classes[found[0]])
        sites_of = located.get(key)
        if not sites_of:
            continue
        first = sum(group.width for group in groups) + 1
        number[found] = np.arange(first, first + found.size)
        whole = bool(resolved.rows[found].all())
        name = named.get(key, sites_of[0]).name + ("#blocks" if whole else "")
        used[name] = used.get(name, 0) + 1
        blocks = block_of[found]
        groups.append(
            Group(
                id=name if used[name] == 1 else f"{name}{'' if whole else '#'}{used[name]}",
                width=int(found.size),
                sites=tuple(sites_of),
                blocks=blocks if blocks.max() >= 0 else None,
                statistics_change=bool(resolved.statistics[found].any()),
                channels=number[found].copy(),
                whole_blocks=whole,
            )
        )
    return tuple(groups), number


def _frozen(sites: SiteRoots, resolved: Resolved) -> tuple[Frozen, ...]:
    """Per layer, the output channels that stay, by reason; those that go with their block are not among them."""
    reason = np.full(resolved.components.size, -1, np.int64)
    first = {(freeze.reason, freeze.node): index for index, freeze in reversed(list(enumerate(resolved.freezes)))}
    for freeze in reversed(resolved.freezes):
        reason[resolved.components[freeze.labels.numpy()]] = first[freeze.reason, freeze.node]
    result = []
    for site, raw, produced in sites:
        if not produced:
            continue
        stuck = raw[(resolved.roots[raw] == 0) & (resolved.outer.which[raw] == 0)]
        found, counts = np.unique(reason[resolved.components[stuck]], return_counts=True)
        for index, count in zip(found.tolist(), counts.tolist(), strict=True):
            freeze = resolved.freezes[index]
            result.append(Frozen((site,), count, freeze.reason, freeze.node))
    return tuple(result)


def _unsupported(labelling: Labelling, resolved: Resolved) -> tuple[Unsupported, ...]:
    """Ops without a rule that pin channels which a layer makes; what they do to masks and tables is no one's loss."""
    made = np.zeros(resolved.components.size, dtype=bool)
    for labels in labelling.store.producers:
        made[resolved.components[labels.numpy()]] = True
    pinning = {f.node for f in resolved.freezes if made[resolved.components[f.labels.numpy()]].any()}
    return tuple(found for found in labelling.unsupported if found.node in pinning)
