"""Plans: which channels stay, so that a target is met."""

from curlfx.planning.apply import slim
from curlfx.planning.choose import plan, plan_from_widths, resolve_round_to
from curlfx.planning.fingerprint import Fingerprint
from curlfx.planning.iterate import prune_iteratively
from curlfx.planning.price import Per
from curlfx.planning.slim_plan import SlimPlan
from curlfx.planning.target import Amount, Target, parse_targets

__all__ = [
    "Amount",
    "Fingerprint",
    "Per",
    "SlimPlan",
    "Target",
    "parse_targets",
    "plan",
    "plan_from_widths",
    "prune_iteratively",
    "resolve_round_to",
    "slim",
]
