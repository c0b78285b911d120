"""Coupling analysis: which channels of a network must go together, and which must stay."""

from curlfx.coupling.couple import couple
from curlfx.coupling.coupling import Coupling, Frozen, Group, GroupId, Site
from curlfx.coupling.explain import Explanation, Pin, Place, explain, places

__all__ = [
    "Coupling",
    "Explanation",
    "Frozen",
    "Group",
    "GroupId",
    "Pin",
    "Place",
    "Site",
    "couple",
    "explain",
    "places",
]
