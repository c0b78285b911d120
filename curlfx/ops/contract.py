"""Contractions over named axes: where summed axes are tied, for conv, linear, matmul, einsum and attention alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from curlfx.labels.arrays import Arrays, support
from curlfx.ops.call import OpCall, Shape

WEIGHTS_SUMMED = "a sum over weights alone, which would change what stays"


@dataclass(frozen=True)
class Factor:
    """One operand of a contraction: its label arrays, its shape, and a letter for each of its axes."""

    arrays: Arrays
    shape: Shape
    letters: str


@dataclass
class _Lettered:
    """An array reduced to its varying axes; ``letters`` names them in order."""

    letters: str
    array: Tensor


def contract(call: OpCall, factors: Sequence[Factor], out: str, *, layer: bool = False) -> Arrays:
    """Labels of ``einsum(factors -> out)``: contracted axes tied, batch axes tied, free axes passed on.

    Args:
        call: The call, for recording.
        factors: The operands; a letter that two share is the same axis.
        out: Letters of the result; letters missing here are summed over.
        layer: Whether this is a layer on values that may be constant (positions), not a sum over weights alone.

    Returns:
        Arrays of the result, laid out along ``out``.

    Source: coupling of contracted axes as the inter-layer dependency of DepGraph (arXiv:2301.12900).
    """
    tables = [_letter(factor) for factor in factors]
    full = [{c for c, size in zip(f.letters, f.shape, strict=True) if size > 1} for f in factors]
    summed = {letter for letters in full for letter in letters} - set(out)
    for table in tables:
        _drop_summed_rows(call, table, summed)
    for letter in sorted({letter for letters in full for letter in letters}):
        holders = [index for index, letters in enumerate(full) if letter in letters]
        if call.fixed and letter in summed and not layer:
            for table in tables:
                _freeze_ending(call, table, letter, WEIGHTS_SUMMED)
            continue
        if len(holders) == 1 and letter in summed:
            _freeze_ending(call, tables[holders[0]], letter, "summed over without a partner")
        elif len(holders) > 1:
            _join(call, [tables[index] for index in holders], letter)
    result: dict[str, Arrays] = {}
    for table in tables:
        for entry in table:
            if set(entry.letters) <= set(out):
                result.setdefault(entry.letters, (_lay_out(call, entry, out),))
    return tuple(array for arrays in result.values() for array in arrays)


def _letter(factor: Factor) -> list[_Lettered]:
    table = []
    for array in factor.arrays:
        axes = support(array)
        table.append(
            _Lettered("".join(factor.letters[axis] for axis in axes), array.reshape([array.shape[a] for a in axes]))
        )
    return table


def _project(call: OpCall, entry: _Lettered, letters: set[str]) -> None:
    """Keep only ``letters`` among the varying axes of an entry (ties the rest)."""
    axes = tuple(index for index, letter in enumerate(entry.letters) if letter in letters)
    reduced = call.project(entry.array, axes)
    entry.array = reduced.reshape([entry.array.shape[axis] for axis in axes])
    entry.letters = "".join(entry.letters[axis] for axis in axes)


def _drop_summed_rows(call: OpCall, table: list[_Lettered], summed: set[str]) -> None:
    """Labels that vary along a summed axis which is not their innermost one are tied across it."""
    for entry in table:
        outer = set(entry.letters[:-1]) & summed
        if outer:
            _project(call, entry, set(entry.letters) - outer)


def _freeze_ending(call: OpCall, table: list[_Lettered], letter: str, reason: str) -> None:
    for entry in [entry for entry in table if entry.letters.endswith(letter)]:
        call.freeze(entry.array, reason)
        table.remove(entry)


def _join(call: OpCall, tables: list[list[_Lettered]], letter: str) -> None:
    """Tie what the operands carry along a shared axis; an operand without labels there freezes the others."""
    found = [[entry for entry in table if entry.letters.endswith(letter)] for table in tables]
    if not all(found):
        for table in tables:
            _freeze_ending(call, table, letter, "contracted with an axis whose channels have no labels")
        return
    common = set.intersection(*(set(entry.letters) for entries in found for entry in entries))
    entries = [entry for group in found for entry in group]
    for entry in entries:
        _project(call, entry, common)
    first = entries[0]
    for entry in entries[1:]:
        order = [entry.letters.index(c) for c in first.letters]
        call.tie(first.array, entry.array.permute(order))
        entry.array, entry.letters = first.array, first.letters


def _lay_out(call: OpCall, entry: _Lettered, out: str) -> Tensor:
    """Place an entry's axes where ``out`` has their letters."""
    places = [out.index(letter) for letter in entry.letters]
    if places != sorted(places):
        _project(call, entry, {entry.letters[-1]})
        places = [out.index(entry.letters)]
    shape = [1] * len(out)
    for place, size in zip(places, entry.array.shape, strict=True):
        shape[place] = size
    return entry.array.reshape(shape)
