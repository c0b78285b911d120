"""The table of fixed small networks: every way in which channels of a network hang together, once."""

from tests.networks import chains, gates, joins, statistics
from tests.networks.case import Case

FIXTURES: dict[str, Case] = {case.name: case for case in (*chains.CASES, *joins.CASES, *gates.CASES, *statistics.CASES)}
