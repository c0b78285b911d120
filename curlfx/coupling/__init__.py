"""Coupling analysis: which channels of a network must go together, and which must stay."""

from curlfx.coupling.couple import couple
from curlfx.coupling.coupling import Coupling, Frozen, Group, GroupId, Site

__all__ = ["Coupling", "Frozen", "Group", "GroupId", "Site", "couple"]
