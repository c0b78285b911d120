"""The user's own `nn.Module`, made narrower where it stands."""

from curlfx.inplace.apply import slim_
from curlfx.inplace.fault import Fault, InPlaceWarning

__all__ = ["Fault", "InPlaceWarning", "slim_"]
