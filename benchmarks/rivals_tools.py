"""The two tools that `rivals.py` compares, each behind the same few functions, and the networks it compares them on."""

import copy
import functools
import gc
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from rivals_oracle import LAYERS, TRANSPOSED, no_fast_path
from rivals_patterns import PATTERNS
from torch import Tensor, nn
from trial import random_keep, randomise
from zoo import torchvision_models

__all__ = ["SIDES", "Clock", "Narrowed", "Subject", "compile_seconds", "layer_rows", "subjects"]

Result = TypeVar("Result")

TORCHVISION = (
    *("resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "densenet121"),
    *("googlenet", "shufflenet_v2_x1_0", "regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny"),
    *("vit_b_16", "swin_t", "maxvit_t"),
)
TIMM = ("vit_tiny_patch16_224", "res2net50_26w_4s", "skresnet18", "cspresnet50")
KEEP_RATIO = 0.5


@dataclass(frozen=True)
class Subject:
    """A network to narrow.

    Attributes:
        name: As its library spells it, or in words.
        kind: "torchvision", "timm" or "pattern".
        build: Makes it, weights freshly initialised.
        shape: Of its input, without the batch.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def make(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
        """The network in evaluation mode, no two channels alike, and two images."""
        torch.manual_seed(0)
        module = randomise(self.build().to(dtype), 0).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # initial values have 24 bits: in a large weight some occur twice
            for parameter in module.parameters():
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.mul_(1 + 1e-3 * noise.to(dtype))
        return module, torch.randn(2, *self.shape, generator=generator, dtype=torch.float64).to(dtype)

    def heads(self, module: nn.Module) -> list[nn.Module]:
        """The layers whose rows are outputs of the network: those a user tells a tool to leave alone."""
        if self.kind == "pattern":
            return [module.get_submodule("head")]
        return [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1000]


def subjects() -> dict[str, Subject]:
    """All networks by name; those of timm where it is installed."""
    found = {}
    zoo = torchvision_models()
    for name in TORCHVISION:
        entry = zoo[name]
        build, shape = entry.build, entry.shape
        if name == "vit_b_16":
            build, shape = _small_vit, (3, 64, 64)
        found[name] = Subject(name, "torchvision", build, shape)
    if importlib.util.find_spec("timm"):
        for name in TIMM:
            shape = (3, 224, 224) if name.startswith("vit") else (3, 64, 64)
            found[f"timm {name}"] = Subject(f"timm {name}", "timm", functools.partial(_timm, name), shape)
    for name, build in PATTERNS.items():
        found[name] = Subject(name, "pattern", build, (3, 16, 16))
    return found


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def _small_vit() -> nn.Module:
    from torchvision.models import vit_b_16

    return vit_b_16(weights=None, image_size=64)


@dataclass
class Narrowed:
    """What a tool made of a network.

    Attributes:
        forward: Runs the narrow network.
        parameters: Its parameters, by the names they had before.
        removable: By weight name, how many of a layer's rows the tool can remove.
    """

    forward: Callable[..., Any]
    parameters: Mapping[str, Tensor]
    removable: Mapping[str, int]


def layer_rows(subject: Subject, module: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """Weights of convolutions and linear layers in parts that run: row axis and number of rows.

    Layers that make the outputs are left out.
    """
    called: set[nn.Module] = set()
    handles = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in module.modules()]
    with torch.no_grad(), no_fast_path():
        module(image)
    for handle in handles:
        handle.remove()
    heads = set(subject.heads(module))
    rows: dict[str, tuple[int, int]] = {}
    for name, layer in module.named_modules():
        owner = module.get_submodule(name.rpartition(".")[0])
        if layer in heads or not called & {layer, owner}:  # some layers hand their weights to a function
            continue
        if isinstance(layer, nn.MultiheadAttention):
            rows[f"{name}.in_proj_weight"] = (0, 3 * layer.embed_dim)
        elif isinstance(layer, LAYERS):
            axis = int(isinstance(layer, TRANSPOSED))
            rows[f"{name}.weight"] = (axis, layer.weight.shape[axis])
    return rows


class Clock:
    """CPU seconds by stage, of this thread: a limit on CPU time makes the clock of the process coarse."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, action: Callable[[], Result]) -> Result:
        """Time a call."""
        start = time.thread_time()
        result = action()
        self.seconds[stage] = time.thread_time() - start
        return result


def with_curlfx(subject: Subject, module: nn.Module, image: Tensor, clock: Clock) -> Narrowed:
    """curlfx, without any hint: half of the channels of every group at random."""
    from curlfx.coupling import couple
    from curlfx.graph import trace
    from curlfx.passes.pipeline import run
    from curlfx.passes.slim import Slim

    rows = layer_rows(subject, module, image)
    traced = clock("trace", lambda: trace(module, (image,)))
    coupling = clock("couple", lambda: couple(traced))
    keep = random_keep(coupling.groups, KEEP_RATIO)
    slim, _ = clock("slim", lambda: run(traced, [Slim(coupling, keep)]))
    result = slim.module.eval()
    removable = {name: _free_rows(coupling, name, axis, count) for name, (axis, count) in rows.items()}
    return Narrowed(result, dict(result.named_parameters(remove_duplicate=False)), removable)


def _free_rows(coupling: Any, name: str, axis: int, rows: int) -> int:
    """How many rows of a weight carry a label of a free channel."""
    free = torch.zeros(rows, dtype=torch.bool)
    for array in coupling.parameter_labels(name):
        if array.ndim > axis and array.shape[axis] == array.size == rows:
            free |= torch.from_numpy(array.reshape(-1) != 0)
    return int(free.sum())


def with_torch_pruning(subject: Subject, module: nn.Module, image: Tensor, clock: Clock, *, hints: bool) -> Narrowed:
    """Torch-Pruning with its usual pruner: half of the channels of every group, by magnitude.

    Args:
        subject: The network.
        module: The same, built; changed in place.
        image: Its input.
        clock: Of the stages "pruner" (which builds the dependency graph) and "step".
        hints: Whether to tell it what its examples tell it: the layers to leave alone, the number of heads, the
            multiple that the width of a ViT must be; and to correct the attributes it leaves behind.
    """
    import torch_pruning

    options: dict[str, Any] = {"num_heads": {}}
    if hints:
        options = {"num_heads": dict(_attention_layers(module)), "ignored_layers": subject.heads(module)}
        multiple = _multiple(module)
        options |= {"round_to": multiple} if multiple else {}
    rows = layer_rows(subject, module, image)
    pruner = clock(
        "pruner",
        lambda: torch_pruning.pruner.BasePruner(
            module,
            image,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 - KEEP_RATIO,
            in_channel_groups={},  # its own default is one dictionary for all pruners of a process
            out_channel_groups={},
            **options,
        ),
    )
    clock("step", pruner.step)
    if hints:
        _correct(module, pruner.num_heads)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    removable = {name: count if parameters[name].shape[axis] < count else 0 for name, (axis, count) in rows.items()}
    return Narrowed(module.eval(), parameters, removable)


def _attention_layers(module: nn.Module) -> list[tuple[nn.Module, int]]:
    """Layers of attention and their number of heads: projections, as in examples/timm_models, or `MultiheadAttention`.

    The torchvision example gives no number of heads for the latter; channels of different heads then change places.
    """
    found: list[tuple[nn.Module, int]] = []
    for layer in module.modules():
        heads = getattr(layer, "num_heads", None)
        if isinstance(layer, nn.MultiheadAttention):
            found.append((layer, layer.num_heads))
        elif isinstance(heads, int):
            projections = [getattr(layer, name, None) for name in ("qkv", "q", "k", "v")]
            found += [(projection, heads) for projection in projections if isinstance(projection, nn.Linear)]
    return found


def _multiple(module: nn.Module) -> int | None:
    """Of what the width of torchvision's ViT must be a multiple (examples/torchvision_models)."""
    from torchvision.models import VisionTransformer

    return module.encoder.layers[0].num_heads if isinstance(module, VisionTransformer) else None


def _correct(module: nn.Module, num_heads: Mapping[nn.Module, int]) -> None:
    """Set the attributes that depend on the widths (examples/timm_models, examples/torchvision_models)."""
    from torchvision.models import VisionTransformer

    if isinstance(module, VisionTransformer):
        module.hidden_dim = module.conv_proj.out_channels
    for layer in module.modules():
        if isinstance(getattr(layer, "num_heads", None), int):
            if isinstance(fused := getattr(layer, "qkv", None), nn.Linear):
                layer.num_heads = num_heads[fused]
                layer.head_dim = fused.out_features // (3 * layer.num_heads)
                if hasattr(layer, "attn_dim"):  # of newer timm than its examples are for
                    layer.attn_dim = fused.out_features // 3
            elif isinstance(query := getattr(layer, "q", None), nn.Linear):
                layer.num_heads = num_heads[query]
                layer.head_dim = query.out_features // layer.num_heads


SIDES: Mapping[str, Callable[[Subject, nn.Module, Tensor, Clock], Narrowed]] = {
    "curlfx": with_curlfx,
    "hints": functools.partial(with_torch_pruning, hints=True),
    "plain": functools.partial(with_torch_pruning, hints=False),
}


def compile_seconds(subject: Subject, sides: Sequence[str], repeat: int) -> dict[str, list[dict[str, float]]]:
    """CPU seconds by side, round and stage, the sides taking turns; float32, one round more that is not counted."""
    module, image = subject.make(torch.float32)
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(repeat + 1):
        for side in sides if number % 2 else reversed(sides):
            clock, fresh = Clock(), copy.deepcopy(module)
            gc.collect()
            SIDES[side](subject, fresh, image, clock)
            if number:
                times[side].append(clock.seconds)
    return times
