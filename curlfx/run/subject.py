"""The network and the data of a job: loaded, fitted to each other, and checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.deploy import check_request
from curlfx.deploy.session import check_runtime
from curlfx.errors import ConfigError
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel
from curlfx.importance import LABELLED, check_criterion, score
from curlfx.planning import SlimPlan, prune_iteratively, resolve_round_to
from curlfx.planning.budget import nothing_can_go
from curlfx.planning.choose import SOLVERS, default_allocation
from curlfx.planning.iterate import ScoreFunction
from curlfx.recovery.hardware import choose_device
from curlfx.run.config import PUBLISHED, RunConfig
from curlfx.run.pruner import make_pruner, unmeasured
from curlfx.run.space import check_search, divided
from curlfx.sources import DataSource, check_fit, input_shape, load_data, load_model, load_weights
from curlfx.sources.source import SplitName

EXAMPLES = 2
PROXY_BATCH_VALUES = 256 * 3 * 64 * 64
SPLITS: tuple[SplitName, ...] = ("train", "test")


@dataclass
class Subject:
    """What a job works on.

    Attributes:
        model: The dense network in eval mode, on the CPU.
        data: Labelled images in the network's shape.
        example: Two test images ``(2, C, H, W)``.
        device: Where training, scoring and evaluation run.
    """

    model: nn.Module
    data: DataSource
    example: Tensor
    device: torch.device

    def trace(self) -> TracedModel:
        """The network as a graph. Raises: TraceError."""
        return trace(self.model, (self.example,))


def load_subject(config: RunConfig) -> Subject:
    """Load and check everything that ``config`` names. Nothing is written.

    Raises: ConfigError, ModelError, WeightsError, DataError naming what does not fit.
    """
    device = choose_device(config.device)
    check_criterion(config.importance, config.divergence)
    check_runtime(config.bench.provider, config.bench.threads)
    check_runtime("cpu", config.threads or 0)
    data = load_data(config.data, shape=wanted_shape(config), limit=config.limit, train_limit=config.train_limit)
    for split in SPLITS:
        data.size(split)
    if config.expands:
        data.expanded()
    model = _network(config, data.num_classes)
    check_fit(model, data)
    example = next(iter(data.loader("test", EXAMPLES)))[0]
    return Subject(model, data, torch.cat([example] * EXAMPLES)[:EXAMPLES], device)


def examine(config: RunConfig, subject: Subject) -> tuple[TracedModel, Coupling]:
    """Trace, couple and plan with random scores, so that a job that cannot end well is refused before any training.

    Whether a latency can be reached only a measurement tells, later.
    Returns: What it traced and coupled; of a dense network that is trained yet, with its first weights.
    Raises: TraceError; KeepError for names in ``ignored_layers`` that match nothing; UsageError for such names in
        ``recovery.overparam.layers``; TargetError for a target out of range for this network; BudgetError for one that
        it cannot reach whatever the scores.
    """
    traced = subject.trace()
    enlarged = config.recovery.overparam.of(seed=config.seed, device=config.device)
    if enlarged.train.epochs:
        enlarged.enlarged(traced)
    coupling = couple(traced, frozen=config.ignored_layers)
    target = config.target.as_mapping()
    if config.gradual.interval != 0:
        if "latency_ms" in target and not coupling.groups:
            raise nothing_can_go("latency_ms", coupling)
        make_pruner(unmeasured(config), traced, "random", coupling=coupling)
    elif config.search.enabled:
        check_search(config, traced, coupling)
        divided(subject.data, config.search.held_out)
    elif "latency_ms" in target:
        check_request(traced, coupling, score(traced, coupling, "random"), target, **plan_options(config))
    else:
        make_plan(config, traced, coupling, lambda network, left: score(network, left, "random"))
    batch = None if config.export.dynamic_batch and traced.dynamic_batch else EXAMPLES
    if batch is not None and config.bench.batch_size != batch:
        raise ConfigError(
            f"bench.batch_size = {config.bench.batch_size}: the exported files take batches of {batch} only; want "
            f"bench.batch_size={batch}, or export.dynamic_batch=true where the network can"
        )
    return traced, coupling


def make_plan(
    config: RunConfig,
    traced: TracedModel,
    coupling: Coupling,
    scored: ScoreFunction,
    costs: CostModel | None = None,
) -> SlimPlan:
    """The plan that ``config`` asks for, from scores of the network and of what each step but the last leaves of it.

    Raises: as `curlfx.planning.prune_iteratively`.
    """
    options, target = plan_options(config), config.target.as_mapping()
    if costs is None and options["allocation"] in SOLVERS:  # only whether it can be reached is asked
        options["allocation"] = "global"
    return prune_iteratively(traced, coupling, scored, target, config.iterative_steps, **options, costs=costs)


def plan_options(config: RunConfig) -> dict[str, Any]:
    """What `curlfx.planning.plan` takes beside a target."""
    allocation = config.allocation or default_allocation(config.target.as_mapping(), config.per)
    step = resolve_round_to(config.round_to, config.bench.provider)
    return {"round_to": step, "allocation": allocation, "floor": config.floor, "per": config.per}


def proxy_batches(data: DataSource, count: int, seed: int) -> tuple[Tensor, ...]:
    """``count`` random training images for scoring, in batches that a small machine can hold in one forward pass.

    Shapes: ``(B, C, H, W)`` each.
    """
    images = data.proxy(count, seed)
    batch = max(1, min(len(images), PROXY_BATCH_VALUES // images[0].numel()))
    return tuple(images[start : start + batch] for start in range(0, len(images), batch))


def scoring_batches(
    data: DataSource, count: int, seed: int, importance: str
) -> Sequence[Tensor] | Sequence[tuple[Tensor, Tensor]]:
    """As `proxy_batches`, with the classes of the images for a criterion that looks at them."""
    batches = proxy_batches(data, count, seed)
    if importance not in LABELLED:
        return batches
    classes = data.proxy_classes(count, seed).split(len(batches[0]))
    return tuple(zip(batches, classes, strict=True))


def wanted_shape(config: RunConfig) -> tuple[int, int, int] | None:
    """Shape ``(C, H, W)`` of the images: the network's with ``image_size`` if that is given; None: the data's own."""
    own, size = input_shape(config.model), config.image_size
    if size is None:
        return own
    return (own[0] if own is not None else 3, size, size)


def random_network(config: RunConfig, classes: int, *, weights: str | None = None) -> nn.Module:
    """The network as its factory makes it; random weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return load_model(config.model, num_classes=classes, weights=weights)


def _network(config: RunConfig, classes: int) -> nn.Module:
    """The network with its weights; random ones follow from the seed."""
    published = config.weights == PUBLISHED
    model = random_network(config, classes, weights=PUBLISHED if published else None)
    if config.weights is not None and not published:
        load_weights(model, config.weights_file, new_head=config.new_head)
    return model
