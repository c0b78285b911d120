"""The plan: which channels stay, for which network, and why."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from curlfx.cost import Cost
from curlfx.coupling import Coupling, couple
from curlfx.errors import KeepError, PlanError
from curlfx.files import read_text, write_bytes
from curlfx.graph import TracedModel
from curlfx.ops.table import Rule
from curlfx.planning.fingerprint import Fingerprint

Natural = Annotated[int, Field(ge=0)]
_VERSION_1 = "1 is of an earlier curlfx and does not describe the ops of its network; make the plan again"


class SlimPlan(BaseModel):
    """A decision that can be printed, saved and replayed.

    Attributes:
        version: Of this format.
        keep: Kept positions per coupling group, strictly increasing; groups that are not mentioned stay whole.
        frozen: Names that the user froze, as :func:`curlfx.couple` took them.
        target: What was asked for, as given; empty when the widths were.
        importance: Criterion that ranked the channels.
        allocation: ``global`` one ranking over all groups, ``uniform`` the same share of each, ``knapsack`` and
            ``greedy`` the widths that keep the largest sum of scores, ``search`` those that a search found, ``widths``
            as given.
        per: What scores were divided by: nothing (``channel``), what a channel costs, or a cost that was given.
        floor: Share of a group below which nothing was removed any more.
        round_to: Kept widths are multiples of this where the group is wide enough.
        before: Cost of the dense network.
        after: Cost of the slim network.
        fingerprint: The network that the plan is for.
        provenance: What led to it: versions, class of the network, seed and number of images, and, where they are
            known, ``model`` and ``arguments``, the factory that made it and what it was given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    version: Literal[2] = 2
    keep: dict[str, tuple[Natural, ...]]
    frozen: tuple[str, ...] = ()
    target: dict[str, int | float | str]
    importance: str
    allocation: Literal["global", "uniform", "knapsack", "greedy", "widths", "search"]
    per: Literal["channel", "macs", "padded_macs", "latency", "given"] = "channel"
    floor: Annotated[float, Field(ge=0, lt=1)]
    round_to: Annotated[int, Field(ge=1)]
    before: Cost
    after: Cost
    fingerprint: Fingerprint
    provenance: dict[str, JsonValue] = {}

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
        difference = self.fingerprint.difference(traced, coupling)
        if difference is not None:
            raise PlanError(f"this plan is for another network: {difference}{self._other_versions()}")
        try:
            coupling.alive(self.keep)
        except KeepError as cause:
            raise PlanError(f"plan: {cause}") from cause

    def couple(self, traced: TracedModel, rules: Mapping[Any, Rule] | None = None) -> Coupling:
        """The coupling of a network that the plan is for, with the names that were frozen. Raises: PlanError.

        Args: ``rules`` of ops of one's own, as `curlfx.couple` takes them.
        """
        try:
            return couple(traced, frozen=self.frozen, rules=rules)
        except KeepError as cause:
            difference = self.fingerprint.difference(traced) or str(cause)
            raise PlanError(f"this plan is for another network: {difference}{self._other_versions()}") from cause

    def noting(self, **facts: JsonValue) -> Self:
        """The same plan with more in its provenance."""
        return self.model_copy(update={"provenance": {**self.provenance, **facts}})

    def _other_versions(self) -> str:
        """What to add to a difference that another version of torch or curlfx may have made."""
        here = {"torch": str(torch.__version__), "curlfx": importlib.metadata.version("curlfx")}
        others = [
            f"{name} {self.provenance[name]}, this is {version}"
            for name, version in here.items()
            if self.provenance.get(name, version) != version
        ]
        return f" (the plan was made with {' and '.join(others)})" if others else ""

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
            if field == "version" and first["input"] == 1:
                raise PlanError(f"plan: version: {_VERSION_1}") from cause
            raise PlanError(f"plan: {field}: {message[:1].lower()}{message[1:]}{more}") from cause

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all. Raises: OutputError."""
        write_bytes(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan from a file. Raises: PlanError naming the file and the field that is wrong."""
        try:
            return cls.from_json(read_text(Path(path)))
        except (OSError, UnicodeDecodeError) as cause:
            raise PlanError(f"{path}: cannot read a plan: {cause}") from cause
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error.__cause__


def _lines(document: Mapping[str, object], indent: str = "") -> str:
    """JSON with every entry of nested mappings, and every text of a list, on a line of its own; numbers on one line."""
    inner = indent + "  "
    entries = [f"{inner}{json.dumps(key)}: {_value(value, inner)}" for key, value in document.items()]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _value(value: object, indent: str) -> str:
    if isinstance(value, Mapping) and value:
        return _lines(value, indent)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        texts = (f"{indent}  {json.dumps(item)}" for item in value)
        return "[\n" + ",\n".join(texts) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
