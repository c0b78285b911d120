"""The part ``target``: what the slim network must reach."""

from __future__ import annotations

import sys

from pydantic import model_validator

from curlfx.cost import Cost
from curlfx.planning.target import Amount, parse_targets
from curlfx.run.config.section import Section

UNBOUNDED = Cost(
    macs=sys.maxsize, params=sys.maxsize, size_bytes=sys.maxsize, padded_macs=sys.maxsize, latency_ms=sys.float_info.max
)
"""Stands for the dense network until it is known: finds targets that are out of range for every network."""


class TargetConfig(Section):
    """What the slim network must reach; every one that is given holds.

    Attributes:
        macs: Multiply-adds for one image: a share of the dense network (``"50%"``, ``0.5``) or a number (``"1.1G"``).
        params: Number of parameters, likewise.
        padded_macs: MACs with channel axes rounded up to the runtime's block, likewise.
        size_mb: Megabytes of weights, likewise.
        latency_ms: Milliseconds of one call, measured as ``bench`` says, likewise.
    """

    macs: Amount | None = None
    params: Amount | None = None
    padded_macs: Amount | None = None
    size_mb: Amount | None = None
    latency_ms: Amount | None = None

    @model_validator(mode="after")
    def _sound(self) -> TargetConfig:
        if not self.as_mapping():
            raise ValueError(f"want at least one of {', '.join(type(self).model_fields)}, like macs=50%")
        parse_targets(self.as_mapping(), UNBOUNDED)
        return self

    def as_mapping(self) -> dict[str, Amount]:
        """The form that planning takes, like ``{"macs": "50%"}``."""
        return self.model_dump(exclude_none=True)
