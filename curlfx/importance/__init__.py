"""Criteria: a score per coupled channel, higher stays."""

from curlfx.importance.criteria import CRITERIA, LABELLED, Criterion, check_criterion, random, score
from curlfx.importance.kl import kl, kl_exact, kl_fast
from curlfx.importance.magnitude import magnitude
from curlfx.importance.relevance import feature_relevance
from curlfx.importance.request import Request
from curlfx.importance.scores import Scores

__all__ = [
    "CRITERIA",
    "LABELLED",
    "Criterion",
    "Request",
    "Scores",
    "check_criterion",
    "feature_relevance",
    "kl",
    "kl_exact",
    "kl_fast",
    "magnitude",
    "random",
    "score",
]
