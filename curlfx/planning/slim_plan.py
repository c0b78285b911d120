"""The plan: which channels stay, for which network, and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curlfx.cost import Cost
from curlfx.coupling import Coupling
from curlfx.errors import KeepError, PlanError
from curlfx.files import write_bytes
from curlfx.graph import TracedModel

Natural = Annotated[int, Field(ge=0)]


class Fingerprint(BaseModel):
    """What a network must look like for a plan to fit: its parameters and its coupling groups.

    Attributes:
        sha256: Hash of the two mappings.
        parameters: Shape of every parameter, by name.
        groups: Width of every coupling group, by id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: str
    parameters: dict[str, tuple[Natural, ...]]
    groups: dict[str, Natural]

    @classmethod
    def of(cls, traced: TracedModel, coupling: Coupling) -> Self:
        """The fingerprint of a network."""
        parameters = {name: tuple(tensor.shape) for name, tensor in sorted(traced.module.named_parameters())}
        groups = {group.id: group.width for group in coupling.groups}
        return cls(sha256=_digest(parameters, groups), parameters=parameters, groups=groups)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sha256 != _digest(self.parameters, self.groups):
            raise ValueError("sha256 does not belong to these parameters and groups; the file was changed by hand")
        return self

    def difference(self, found: Fingerprint) -> str | None:
        """The first thing in which another network differs from this one, in words; None when they are alike."""
        if self.sha256 == found.sha256:
            return None
        for kind, wanted, others in (
            ("parameter", self.parameters, found.parameters),
            ("coupling group", self.groups, found.groups),
        ):
            for name in wanted:
                if name not in others:
                    return f"it has no {kind} '{name}'"
                if wanted[name] != others[name]:
                    return f"{kind} '{name}' is {_size(others[name])}, want {_size(wanted[name])}"
            extra = next((name for name in others if name not in wanted), None)
            if extra is not None:
                return f"it has {kind} '{extra}', which the plan's network has not"
        return "the same parameters and groups come in another order"


def _size(value: object) -> str:
    return f"{value} wide" if isinstance(value, int) else str(value)


def _digest(parameters: Mapping[str, tuple[int, ...]], groups: Mapping[str, int]) -> str:
    document = [[name, list(shape)] for name, shape in parameters.items()], list(groups.items())
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()


class SlimPlan(BaseModel):
    """A decision that can be printed, saved and replayed.

    Attributes:
        version: Of this format.
        keep: Kept positions per coupling group, strictly increasing; groups that are not mentioned stay whole.
        target: What was asked for, as given; empty when the widths were.
        importance: Criterion that ranked the channels.
        allocation: ``global`` one ranking over all groups, ``uniform`` the same share of each, ``widths`` as given.
        floor: Share of a group below which nothing was removed any more.
        round_to: Kept widths are multiples of this where the group is wide enough.
        before: Cost of the dense network.
        after: Cost of the slim network.
        fingerprint: The network that the plan is for.
        provenance: Versions, seed and number of images that led to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    version: Literal[1] = 1
    keep: dict[str, tuple[Natural, ...]]
    target: dict[str, int | float | str]
    importance: str
    allocation: Literal["global", "uniform", "widths"]
    floor: Annotated[float, Field(ge=0, lt=1)]
    round_to: Annotated[int, Field(ge=1)]
    before: Cost
    after: Cost
    fingerprint: Fingerprint
    provenance: dict[str, int | str] = {}

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        for group, kept in self.keep.items():
            width = self.fingerprint.groups.get(group)
            if width is None:
                raise ValueError(f"keep['{group}']: fingerprint.groups has no such group")
            if not kept or kept[-1] >= width or any(a >= b for a, b in pairwise(kept)):
                raise ValueError(f"keep['{group}']: want at least one, strictly increasing, in [0, {width})")
        return self

    @property
    def widths(self) -> dict[str, int]:
        """Kept channels of every group of the network."""
        return {group: len(self.keep.get(group, range(width))) for group, width in self.fingerprint.groups.items()}

    def check(self, traced: TracedModel, coupling: Coupling) -> None:
        """Refuse a network that the plan was not made for. Raises: PlanError naming the first difference."""
        difference = self.fingerprint.difference(Fingerprint.of(traced, coupling))
        if difference is not None:
            raise PlanError(f"this plan is for another network: {difference}")
        try:
            coupling.alive(self.keep)
        except KeepError as cause:
            raise PlanError(f"plan: {cause}") from cause

    def to_json(self) -> str:
        """The plan as text, one line per entry of a mapping."""
        return _lines(self.model_dump(mode="json")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan of a text. Raises: PlanError naming the field that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as cause:
            faults = cause.errors(include_url=False)
            first = faults[0]
            field = ".".join(str(part) for part in first["loc"]) or "plan"
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            message = first["msg"].removeprefix("Value error, ")
            raise PlanError(f"plan: {field}: {message[:1].lower()}{message[1:]}{more}") from cause

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all. Raises: OutputError."""
        write_bytes(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan from a file. Raises: PlanError naming the file and the field that is wrong."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as cause:
            raise PlanError(f"{path}: cannot read a plan: {cause}") from cause
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error.__cause__


def _lines(document: Mapping[str, object], indent: str = "") -> str:
    """JSON with every entry of nested mappings on a line of its own, and lists on one line."""
    inner = indent + "  "
    entries = [
        f"{inner}{json.dumps(key)}: "
        + (_lines(value, inner) if isinstance(value, Mapping) and value else json.dumps(value, allow_nan=False))
        for key, value in document.items()
    ]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
