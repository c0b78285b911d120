"""Layer-wise relevance propagation over the graph of a traced network."""

from curlfx.lrp.call import Call, Rule, Settings
from curlfx.lrp.maps import Conservation, Relevance, relevance
from curlfx.lrp.propagate import Propagation
from curlfx.lrp.table import RULES

__all__ = ["RULES", "Call", "Conservation", "Propagation", "Relevance", "Rule", "Settings", "relevance"]
