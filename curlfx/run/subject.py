"""The network and the data of a job: loaded, fitted to each other, and checked before anything is written."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curlfx.coupling import Coupling, couple
from curlfx.errors import ConfigError, DataError, ModelError
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel
from curlfx.importance import CRITERIA
from curlfx.recovery.hardware import choose_device
from curlfx.recovery.loss import logits_of
from curlfx.run.config import PUBLISHED, RunConfig
from curlfx.sources import DataSource, input_shape, load_data, load_model, load_weights

EXAMPLES = 2


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
    check_criterion(config.importance)
    data = load_data(config.data, limit=config.limit)
    model = _network(config, data.num_classes)
    shape = wanted_shape(config, model, data)
    if shape != data.shape:
        data = load_data(config.data, shape=shape, limit=config.limit)
    for split in ("train", "test"):
        data.size(split)
    example = next(iter(data.loader("test", EXAMPLES)))[0][:EXAMPLES]
    if len(example) < EXAMPLES:
        example = torch.cat([example] * EXAMPLES)[:EXAMPLES]
    check_head(config.model, model, data, example)
    return Subject(model, data, example, device)


def examine(config: RunConfig, subject: Subject) -> tuple[TracedModel, Coupling]:
    """Trace and couple, so that a network that cannot be compiled is refused before any training.

    Raises: TraceError; KeepError for names in ``ignored_layers`` that match nothing.
    """
    traced = subject.trace()
    return traced, couple(traced, frozen=config.ignored_layers)


def check_criterion(name: str) -> None:
    """Raises: ConfigError for a criterion that does not exist."""
    if name not in CRITERIA:
        close = difflib.get_close_matches(name, CRITERIA, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"importance = {name}: want one of {', '.join(CRITERIA)}{hint}")


def wanted_shape(config: RunConfig, model: nn.Module, data: DataSource) -> tuple[int, int, int]:
    """Shape ``(C, H, W)`` of the images: ``image_size`` if given, else the network's, else the data's."""
    own = input_shape(config.model, model) or data.shape
    size = config.image_size
    return (own[0], size, size) if size is not None else (own[0], own[1], own[2])


def check_head(name: str, model: nn.Module, data: DataSource, example: Tensor) -> None:
    """Run the network on two images.

    Raises: DataError when it cannot take them or has another number of classes; ModelError when it is no classifier.
    """
    shape = "x".join(map(str, example.shape[1:]))
    try:
        with torch.inference_mode():
            output = model.eval()(example)
    except Exception as cause:
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(
            f"{name} cannot take images of {data.name}, shape {shape} ({reason}); give image_size or other data"
        ) from cause
    logits = logits_of(output)
    if logits.ndim != 2:
        found = "x".join(map(str, logits.shape[1:]))
        raise ModelError(f"{name} gives {found} numbers per image; a run wants a classifier, one number per class")
    if logits.shape[1] != data.num_classes:
        raise DataError(
            f"data {data.name} has {data.num_classes} classes, but the head of {name} has {logits.shape[1]}; "
            f"give a network with {data.num_classes} classes, or data with {logits.shape[1]}"
        )


def _network(config: RunConfig, classes: int) -> nn.Module:
    """The network with its weights; random ones follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        published = config.weights == PUBLISHED
        model = load_model(config.model, num_classes=classes, weights=PUBLISHED if published else None)
    if config.weights is not None and not published:
        load_weights(model, config.weights_file, new_head=config.new_head)
    return model
