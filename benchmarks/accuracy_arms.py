"""What `accuracy.py` compares: ways to choose channels, by curlfx and by Torch-Pruning, for the same MACs."""

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from curlfx.cost import macs, params
from curlfx.coupling import couple
from curlfx.errors import BudgetError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores
from curlfx.models.resnet_cifar import CifarResNet
from curlfx.planning import plan, slim
from curlfx.planning.choose import Allocation

__all__ = ["ARMS", "Arm", "Narrowed", "narrow", "narrow_by_rival", "outer_norms"]

FLOOR = 0.3
STEPS = 12
"""Bisections of Torch-Pruning's ratio: to 0.02 points of it."""


@dataclass(frozen=True)
class Arm:
    """One way to choose channels.

    Attributes:
        criterion: Of curlfx, or the importance of Torch-Pruning.
        allocation: As `curlfx.plan` takes it.
        per: Likewise.
        inner: Only channels inside residual blocks may go.
        rival: Whether Torch-Pruning chooses and narrows.
    """

    criterion: str
    allocation: Allocation = "global"
    per: Literal["channel", "macs"] = "channel"
    inner: bool = False
    rival: bool = False


ARMS: Mapping[str, Arm] = {
    "kl": Arm("kl"),
    "kl-per-macs": Arm("kl", per="macs"),
    "kl-knapsack": Arm("kl", "knapsack"),
    "kl-fast": Arm("kl-fast"),
    "kl-fast-per-macs": Arm("kl-fast", per="macs"),
    "taylor": Arm("taylor"),
    "taylor-per-macs": Arm("taylor", per="macs"),
    "bn-scale": Arm("bn-scale"),
    "magnitude": Arm("magnitude"),
    "random": Arm("random"),
    "uniform": Arm("magnitude", "uniform"),
    "kl-inner": Arm("kl", inner=True),
    "taylor-inner": Arm("taylor", inner=True),
    "magnitude-inner": Arm("magnitude", inner=True),
    "tp-magnitude": Arm("magnitude", rival=True),
    "tp-taylor": Arm("taylor", rival=True),
}
"""Name of the arm, as on the command line and in the table."""


@dataclass(frozen=True)
class Narrowed:
    """A narrow network.

    Attributes:
        module: To be recovered.
        macs: Multiply-adds for one image.
        params: Parameters.
        absorbed: The same with what removed channels would emit moved into biases, by the word for how; empty for
            Torch-Pruning, which does not do that.
    """

    module: nn.Module
    macs: int
    params: int
    absorbed: Mapping[str, nn.Module]


def narrow(arm: Arm, model: nn.Module, traced: TracedModel, scores: Callable[[bool], Scores], target: str) -> Narrowed:
    """Let curlfx choose and narrow.

    Args:
        arm: How.
        model: The dense network.
        traced: The same.
        scores: Scores of the criterion; told whether only inner channels count.
        target: MACs to reach, like ``"50%"``.
    """
    coupling = couple(traced, frozen=outer_norms(model) if arm.inner else ())
    found = plan(
        traced,
        coupling,
        scores(arm.inner),
        {"macs": target},
        round_to=1,
        floor=FLOOR,
        allocation=arm.allocation,
        per=arm.per,
    )
    ways: tuple[Literal["exact", "mean"], ...] = ("exact", "mean")
    absorbed = {way: slim(traced, found, coupling, absorb_bias=way).module for way in ways}
    return Narrowed(slim(traced, found, coupling).module, found.after.macs, found.after.params, absorbed)


def inner_only(model: nn.Module) -> bool:
    """Whether shortcuts without parameters pad the channels of this network, which Torch-Pruning does not follow."""
    return isinstance(model, CifarResNet)


def outer_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose outputs are added up: the stem, and the last of every block."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    last = {name.rpartition(".")[0]: name for name in names if ".conv" in name}
    shortcuts = [name for name in names if "downsample" in name]
    return ["conv1", *last.values(), *shortcuts]


def outer_norms(model: nn.Module) -> list[str]:
    """Names of their normalisations: freezing the layers would freeze the channels that they read, too."""
    return [name.replace("conv", "bn") for name in outer_layers(model) if "downsample" not in name]


def narrow_by_rival(arm: Arm, model: nn.Module, batch: tuple[Tensor, Tensor], target: str) -> Narrowed:
    """Let Torch-Pruning choose and narrow: global ranking, and the smallest ratio that reaches the target.

    Of every layer as large a share stays as in the other arms. MACs are counted as for them.

    Args:
        arm: Its importance: group L2 norm, or group Taylor on the batch.
        model: The dense network, left alone.
        batch: Proxy images with their classes.
        target: MACs to reach, like ``"50%"``.
    """
    example = batch[0][:2]
    limit = float(target.rstrip("%")) / 100 * sum(macs(trace(model, (example,))).values())
    low, high, best = 0.0, 1.0 - FLOOR, None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        module = _pruned(arm, model, batch, ratio)
        traced = trace(module, (example,))
        found = sum(macs(traced).values()), sum(params(traced).values())
        if found[0] <= limit:
            high, best = ratio, Narrowed(module, *found, {})
        else:
            low = ratio
    if best is None:
        raise BudgetError(f"Torch-Pruning does not reach {target} of the MACs with a ratio of up to {high}")
    return best


def _pruned(arm: Arm, model: nn.Module, batch: tuple[Tensor, Tensor], ratio: float) -> nn.Module:
    if not importlib.util.find_spec("torch_pruning"):
        raise SystemExit("arms with 'tp-' need Torch-Pruning: pip install torch-pruning")
    import torch_pruning

    module = copy.deepcopy(model).eval()
    images, labels = batch
    importances = torch_pruning.importance
    importance = importances.GroupMagnitudeImportance(p=2)
    if arm.criterion == "taylor":
        importance = importances.GroupTaylorImportance()
        nn.functional.cross_entropy(module(images), labels).backward()
    outer = outer_layers(module) if inner_only(module) else []
    heads = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        images[:2],
        importance=importance,
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=1 - FLOOR,
        ignored_layers=[*heads, *(module.get_submodule(name) for name in outer)],
        in_channel_groups={},  # its own default is one dictionary for all pruners of a process
        out_channel_groups={},
    )
    pruner.step()
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        module(images[:2])
    return module
