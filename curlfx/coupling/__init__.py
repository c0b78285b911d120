"""Coupling analysis: which channels of a network must go together, and which must stay."""

from curlfx.coupling.couple import couple, free_share
from curlfx.coupling.coupling import Coupling, Frozen, Group, GroupId, Site

__all__ = ["Coupling", "Frozen", "Group", "GroupId", "Site", "couple", "free_share"]
