"""Linear over-parameterisation: a slim network trained with three layers in place of each, and contracted again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from curlfx.errors import ConfigError
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel, TracedModule
from curlfx.passes.contract_linear import ContractLinear, blocks, product
from curlfx.passes.expand_linear import Compute, Expanded, ExpandLinear, bare
from curlfx.passes.factors import INITIALISATIONS, Factors, Initialisation, factorise
from curlfx.passes.linear_layers import weight_of
from curlfx.progress import Progress
from curlfx.recovery.batches import Loader, batches, seeded
from curlfx.recovery.fit import FitResult, fit
from curlfx.recovery.hardware import home_of
from curlfx.recovery.processes import processes
from curlfx.recovery.settings import TrainSettings
from curlfx.recovery.similarity import all_similarities, similarity_loss
from curlfx.recovery.supplement import Supplement
from curlfx.recovery.taps import per_image, tapped

Decay = Literal["middle", "all"]
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "init": INITIALISATIONS,
    "compute": get_args(Compute),
    "decay": get_args(Decay),
}
PER_LAYER_AND_IMAGE = 0.4
_DERIVED = ("similarity", "frozen_epochs")  # from the training and the network, where nothing is said
_LEAST = {"rate": 1, "similarity": 0, "frozen_epochs": 0, "merge_every": 0}


@dataclass(frozen=True)
class Overparam:
    """A training of the enlarged network, which is contracted to the slim shapes afterwards.

    Attributes:
        train: Epochs (0: none at all), learning rate and so on; ``distillation`` above 0 adds the dense network's
            logits.
        rate: Channels within an enlarged layer, per channel outside.
        layers: Names of weights, or of modules they are in, with ``*``; empty: all layers but the classifier.
        init: How the factors start; see `curlfx.passes.factors.factorise`.
        compute: ``weights``, ``features`` or ``auto``; see `curlfx.passes.expand_linear.ExpandLinear`.
        similarity: lambda: weight of the mean `similarity_loss` between every enlarged layer and the same layer of the
            dense network, both before what follows them; 0 needs no dense network. None: `PER_LAYER_AND_IMAGE` times
            the layers and the images of a batch.
        decay: Whether weight decay falls on the ``middle`` factor only, or on ``all`` three.
        frozen_epochs: Epochs at the start during which the outer factors A and B stand still; None: the first of
            several (ours: `benchmarks/results/recovery.md`).
        merge_every: After so many epochs the factors are multiplied and begin anew; 0: never.

    Raises: ConfigError for a value out of range.
    Source: Qian et al., arXiv:2204.11444. Lambda, ours: about 3000 did well with 55 layers and batches of 128 (Tian's
        RepDistiller has 3000, for one layer); the loss is a mean over layers, and falls with the batch.
    """

    train: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=0))
    rate: int = 4
    layers: tuple[str, ...] = ()
    init: Initialisation = "semi_orthogonal"
    compute: Compute = "auto"
    similarity: float | None = None
    decay: Decay = "middle"
    frozen_epochs: int | None = None
    merge_every: int = 0

    def __post_init__(self) -> None:
        if fault := bare(self.layers):
            raise ConfigError(f"overparam: {fault}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in _DERIVED:
                continue
            if not least <= value < float("inf"):
                raise ConfigError(f"overparam: {name} = {value}: want {least} or more")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"overparam: {name} = {getattr(self, name)!r}: want one of {', '.join(choices)}")
        if self.compares and self.train.batch_size == 1:
            raise ConfigError("overparam: one image is like itself: want batch_size of 2 or more, or similarity=0")
        if self.merge_every and self.train.ema_decay is not None:
            raise ConfigError("overparam: an average of factors that begin anew means nothing; leave out ema_decay")

    @property
    def compares(self) -> bool:
        """Whether features are compared with those of the dense network."""
        return self.similarity is None or self.similarity > 0

    def weight(self, layers: int, images: int) -> float:
        """Weight of the similarities in so many layers between so many images."""
        return PER_LAYER_AND_IMAGE * layers * images if self.similarity is None else self.similarity

    @property
    def resting_epochs(self) -> int:
        """Epochs at the start during which A and B stand still."""
        return int(self.train.epochs > 1) if self.frozen_epochs is None else self.frozen_epochs

    @property
    def expansion(self) -> ExpandLinear:
        """The pass that enlarges."""
        train = self.train
        return ExpandLinear(self.rate, self.layers, self.init, self.compute, train.batch_size, train.seed)

    def enlarged(self, network: TracedModel) -> list[str]:
        """Names of the nodes of the layers that are enlarged.

        Raises: UsageError for names of layers that the network does not have, or that cannot be enlarged; ConfigError
            where there is nothing to enlarge.
        """
        expansion = self.expansion
        expansion.requires(network)
        names = [call.name for weight in expansion.chosen(network) for call in weight.calls]
        if not names:
            raise ConfigError(
                "overparam: the network has no convolution or linear layer but the last; name some as layers"
            )
        return names

    @property
    def described(self) -> dict[str, Any]:
        """Everything but the settings of the training, as plain values."""
        return {**{name: value for name, value in asdict(self).items() if name != "train"}, "layers": list(self.layers)}


def fit_expanded(
    student: TracedModel,
    loader: Loader,
    settings: Overparam,
    *,
    teacher: TracedModel | None = None,
    validation: Loader | None = None,
    stage: str = "overparam",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> FitResult:
    """Enlarge a slim network, train it, and put the contracted weights into it; its graph stays as it is.

    Arguments and errors: as for `curlfx.recovery.fit`. Deterministic and resumable as that.

    Args:
        teacher: The dense network that the slim one was made from, with the same names of nodes.

    Raises: as `fit`; ConfigError when the dense network is missing or another one, or nothing can be enlarged;
        VerificationError when the contracted network does not compute what the enlarged one does.
    """
    names = settings.enlarged(student)
    if settings.compares and teacher is None:
        raise ConfigError("overparam: similarities need the dense network; give a teacher, or similarity=0")
    expanded = settings.expansion(student)
    module, judge = expanded.module, None if teacher is None else teacher.module
    if settings.compares and teacher is not None:
        taps = _common(student, teacher, names)
        module, judge = tapped(expanded, taps), tapped(teacher, taps)
    result = fit(
        module, loader, settings.train, teacher=judge, supplement=_Enlarged(settings, blocks(expanded)),
        validation=validation, stage=stage, progress=progress, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    expanded.module.load_state_dict(module.state_dict())
    student.module.load_state_dict(ContractLinear()(expanded).module.state_dict())
    return result


class _Enlarged(Supplement):
    """Weight decay, rest and renewal of the factors, and the similarity of features."""

    def __init__(self, settings: Overparam, expanded: Mapping[Factors[str], Expanded]) -> None:
        self._settings, self._expanded = settings, expanded
        self._outer = [name for names in expanded for name in (names.a, names.b)]
        self.asks_teacher = settings.compares
        self.undecayed = frozenset(self._outer if settings.decay == "middle" else ())
        self.described = settings.described

    def before_epoch(self, module: nn.Module, epoch: int) -> None:
        """Let the outer factors rest, or go."""
        for name in self._outer:
            module.get_parameter(name).requires_grad_(epoch >= self._settings.resting_epochs)

    def after_epoch(self, module: nn.Module, epoch: int, optimizer: torch.optim.Optimizer) -> bool:
        """Multiply the factors and begin with new ones, without momentum."""
        done, every, train = epoch + 1, self._settings.merge_every, self._settings.train
        if every == 0 or done % every or done == train.epochs:
            return False
        for names, expanded in self._expanded.items():
            held: Factors[Tensor] = Factors(*(module.get_parameter(name) for name in names))
            seed = (train.seed, zlib.crc32(expanded.names[0].encode()), done)
            new = factorise(product(held, expanded), expanded.layout, self._settings.rate, self._settings.init, seed)
            for old, value in zip(held, new, strict=True):
                old.data.copy_(value)
                optimizer.state.pop(old, None)
        return False

    def taught(self, output: Any) -> list[Tensor] | None:
        """Similarities in the dense network's layers."""
        return all_similarities(output[1], processes()) if self.asks_teacher else None

    def loss(self, output: Any, taught: Sequence[Tensor]) -> Tensor | None:
        """How far the student's are from them."""
        if not self.asks_teacher:
            return None
        own = all_similarities(output[1], processes())
        return self._settings.weight(len(own), own[0].shape[1]) * similarity_loss(own, taught)


def _common(student: TracedModel, teacher: TracedModel, names: Sequence[str]) -> list[str]:
    """The layers whose features are compared. Raises: ConfigError when the teacher has no such layers."""
    ours, theirs = ({node.name: node for node in network.graph.nodes} for network in (student, teacher))
    for name in names:
        node, other = ours[name], theirs.get(name)
        if other is None or other.target != node.target or weight_of(other).target != weight_of(node).target:
            raise ConfigError(
                f"overparam: the teacher has no layer '{name}' with weight '{weight_of(node).target}'; want the dense "
                "network that the slim one was made from, or similarity=0"
            )
    taps = [name for name in names if per_image(student, name) and per_image(teacher, name)]
    if not taps:
        raise ConfigError("overparam: no enlarged layer has features per image; want similarity=0")
    return taps


def as_traced(network: nn.Module | TracedModel, loader: Loader) -> TracedModel:
    """A network as a graph, examples on its device; traced with images of the loader where it is none yet: a copy."""
    if isinstance(network, TracedModel):
        return network
    with seeded(0, 0, torch.device("cpu")):
        images = next(iter(batches(loader, 0)))[0].to(home_of(network))
    if not isinstance(network, TracedModule):
        return trace(network, (images[:2],))
    asked = next(node for node in network.graph.nodes if node.op == "placeholder").meta["val"]
    return TracedModel(network, (images[torch.arange(asked.shape[0]) % len(images)],))
