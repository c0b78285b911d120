"""The fingerprint: what a network must look like for a plan to fit, in a form that can name the first difference."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curlfx.coupling import Coupling
from curlfx.graph import TracedModel
from curlfx.planning.structure import BATCH, Op, structure

Natural = Annotated[int, Field(ge=0)]

_SIZE = re.compile(rf"(?<![\w.%])(\d*){BATCH}([+-]\d+)?(?![\w.])")
_NUMBER = re.compile(r"(?<![\w.%#])\d+(?![\w.])")
PLANS = "in the plan's network"


class Fingerprint(BaseModel):
    """What a network must look like for a plan to fit: parameters, the ops between them, coupling groups.

    It says nothing of weights, devices, floating-point types, names of graph nodes, or, where the network takes any,
    of the batch size.

    Attributes:
        sha256: Hash of the rest but ``batch``.
        batch: The batch size that the sizes are for; None where the network takes any, ``N`` in the lines below.
        inputs: Shape of every input, without a batch axis of its own: ``[N, 3, 224, 224]``.
        parameters: Shape of every parameter, by name.
        ops: One line per op, as `curlfx.planning.structure.Op.text`.
        groups: Width of every coupling group, by id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: str
    batch: Natural | None
    inputs: tuple[str, ...]
    parameters: dict[str, tuple[Natural, ...]]
    ops: tuple[str, ...]
    groups: dict[str, Natural]

    @classmethod
    def of(cls, traced: TracedModel, coupling: Coupling) -> Self:
        """The fingerprint of a network."""
        found = structure(traced)
        content = {
            "inputs": found.inputs,
            "parameters": _parameters(traced),
            "ops": tuple(op.text for op in found.ops),
            "groups": _groups(coupling),
        }
        return cls.model_validate({"sha256": _digest(content), "batch": found.batch, **content})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sha256 != _digest(self.model_dump(exclude={"sha256", "batch"})):
            raise ValueError("sha256 does not belong to the rest of the fingerprint; the file was changed by hand")
        return self

    def difference(self, traced: TracedModel, coupling: Coupling | None = None) -> str | None:
        """The first thing in which a network differs from this one, in words; None when they are alike.

        Without a ``coupling`` the groups are left out.
        """
        return (
            _differing("parameter", self.parameters, _parameters(traced))
            or self._other_structure(traced)
            or (_differing("coupling group", self.groups, _groups(coupling)) if coupling is not None else None)
        )

    def _other_structure(self, traced: TracedModel) -> str | None:
        found = structure(traced)
        for position, (wanted, here) in enumerate(itertools.zip_longest(self.inputs, found.inputs)):
            if wanted is None or here is None or not self._alike(wanted, here, found.batch):
                return f"input {position} is {wanted or 'not there'} {PLANS}, {here or 'not there'} here"
        before = "at the start"
        for wanted, op in itertools.zip_longest(self.ops, found.ops):
            if wanted is None or op is None or not self._alike(wanted, op.text, found.batch):
                return f"{before} {_other_op(wanted, op)}"
            before = f"after {op.module or 'a call'} ({_name(op.text)})"
        return None

    def _alike(self, wanted: str, found: str, batch: int | None) -> bool:
        """Whether two lines say the same, whatever the batch sizes that the two networks are fixed to, if any."""
        if wanted == found:
            return True
        here = batch if batch is not None else self.batch
        plans = self.batch if self.batch is not None else batch
        if here is None or plans is None:
            return False
        wanted, found = _at(wanted, plans), _at(found, here)
        if _NUMBER.sub("", wanted) != _NUMBER.sub("", found):
            return False
        pairs = zip(map(int, _NUMBER.findall(wanted)), map(int, _NUMBER.findall(found)), strict=True)
        return all(a == b or a * here == b * plans for a, b in pairs)


def _at(line: str, batch: int) -> str:
    """A line with the sizes for a batch size: ``12N`` becomes 24 for 2."""
    return _SIZE.sub(lambda size: str(int(size[1] or 1) * batch + int(size[2] or 0)), line)


def _parameters(traced: TracedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in traced.module.named_parameters()}


def _groups(coupling: Coupling) -> dict[str, int]:
    return {group.id: group.width for group in coupling.groups}


def _differing(kind: str, wanted: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The first name that only one of them has, or that they say different things of."""
    for name, value in wanted.items():
        if name not in found:
            return f"it has no {kind} '{name}'"
        if found[name] != value:
            return f"{kind} '{name}' is {_size(value)} {PLANS}, {_size(found[name])} here"
    extra = next((name for name in found if name not in wanted), None)
    return None if extra is None else f"it has {kind} '{extra}', which the plan's network has not"


def _size(value: object) -> str:
    return f"{value} wide" if isinstance(value, int) else str(value)


def _other_op(wanted: str | None, op: Op | None) -> str:
    place = f" ({op.line})" if op is not None and op.line else ""
    if wanted is None or op is None:
        more, which = (op.text, "this network") if op is not None else (wanted, "the plan's network")
        return f"{which} goes on with {_name(str(more))}{place}, the other one ends"
    if _name(wanted) != _name(op.text):
        return f"comes {_name(wanted)} {PLANS}, {_name(op.text)} here{place}"
    (plans, wide), (here, narrow) = _parted(wanted), _parted(op.text)
    if plans != here:
        return f"comes {plans} {PLANS}, {here} here{place}"
    return f"{_name(op.text)} gives {wide} {PLANS}, {narrow} here{place}"


def _name(line: str) -> str:
    """Name of the op of a line."""
    return line.partition("(")[0].partition(" ")[0]


def _parted(line: str) -> tuple[str, str]:
    call, _, result = line.rpartition(" : ")
    return call or result, result


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
