"""The criteria by name, and the one way to ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from curlfx.coupling import Coupling, GroupId
from curlfx.errors import ConfigError, did_you_mean
from curlfx.graph import TracedModel
from curlfx.importance.batch_norm_scale import batch_norm_scale
from curlfx.importance.data import ProxySet
from curlfx.importance.divergence import AUTO, check_divergence
from curlfx.importance.kl import kl, kl_exact, kl_fast
from curlfx.importance.magnitude import magnitude
from curlfx.importance.relevance import feature_relevance, inner_relevance
from curlfx.importance.request import Request
from curlfx.importance.scores import Scores, Values
from curlfx.importance.taylor import taylor
from curlfx.progress import Progress

Criterion = Callable[[Request], Mapping[GroupId, Values]]


def random(request: Request) -> dict[GroupId, Values]:
    """Uniform random scores in [0, 1), the control of every other criterion; a function of the seed and the groups."""
    generator = np.random.default_rng(request.seed)
    return {group.id: generator.random(group.width) for group in request.coupling.groups}


CRITERIA: Mapping[str, Criterion] = {
    "kl": kl,
    "kl-exact": kl_exact,
    "kl-fast": kl_fast,
    "magnitude": magnitude,
    "random": random,
    "bn-scale": batch_norm_scale,
    "taylor": taylor,
    "relevance": feature_relevance,
    "relevance-inner": inner_relevance,
}
"""What a criterion is called; each gives a score per coupled channel, higher stays."""
COMPARING = ("kl", "kl-exact", "kl-fast")
"""Those of them that compare predictions, by a divergence."""

LABELLED = ("relevance", "relevance-inner")
"""Those that are given the classes of the images where data has them."""


def check_criterion(importance: str, divergence: str = AUTO, criteria: Mapping[str, Criterion] = CRITERIA) -> None:
    """Raises: ConfigError for a criterion or a divergence that does not exist, or two that do not go together."""
    if importance not in criteria:
        hint = did_you_mean(importance, criteria)
        raise ConfigError(f"importance = {importance}: want one of {', '.join(criteria)}{hint}")
    check_divergence(divergence)
    own = criteria[importance] is not CRITERIA.get(importance)
    if divergence != AUTO and not own and importance not in COMPARING:
        raise ConfigError(
            f"divergence = {divergence}: importance = {importance} compares no predictions; leave out divergence, or "
            f"take importance = {', '.join(COMPARING)}"
        )


def score(
    traced: TracedModel,
    coupling: Coupling,
    importance: str = "kl",
    data: Iterable[object] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    divergence: str = AUTO,
    store: Path | None = None,
    criteria: Mapping[str, Criterion] = CRITERIA,
) -> Scores:
    """Score every coupled channel of a network, which is left exactly as it was.

    Args:
        traced: The dense network.
        coupling: Its channels.
        importance: A key of ``criteria``.
        data: Batches of images, each a tensor, a sequence or a mapping that starts with one; what ``kl`` looks at, and
            holds in memory.
        seed: Of random criteria.
        progress: Is told of the work that is done, with the time left.
        divergence: How ``kl`` compares predictions: ``softmax``, ``bernoulli`` (multi-label heads), ``embedding``, or
            ``auto``: bernoulli where the network ends in a sigmoid, softmax elsewhere.
        store: File for unfinished scores. The same question asked with the same file goes on where the last process
            was killed, and gets the same numbers to the last bit.
        criteria: Names and functions; pass a larger mapping to add one.

    Raises: ConfigError for an unknown criterion or divergence, or a divergence that the criterion does not look at;
        DataError when it wants images and gets none, or ones that do not fit; PlanError when a score is not finite.
    """
    check_criterion(importance, divergence, criteria)
    proxy = ProxySet(data)
    request = Request(traced, coupling, proxy, seed, progress, divergence, store)
    values = criteria[importance](request)
    details = {"seed": seed} | ({"images": proxy.images} if proxy.images else {})
    return Scores(importance, values, details | request.details)
