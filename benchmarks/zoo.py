"""The networks of torchvision: names, constructors, and the smallest sensible input of each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Entry", "torchvision_models"]


@dataclass(frozen=True)
class Entry:
    """One network of a zoo.

    Attributes:
        name: As its library spells it.
        kind: "classification", "segmentation" or "video" in torchvision, the family elsewhere.
        shape: Input shape without the batch axis.
        build: Makes the network with freshly initialised weights.
        zoo: Where it is from.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    zoo: str = "torchvision"

    def inputs(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """Normally distributed inputs."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype),)


# Convolutional networks take 64x64 images, which leaves 2x2 pixels at a stride of 32. Prefixes that need more:
# Inception-v3 reduces without padding; position tables and windows of transformers are made for 224x224; S3D ends in
# a fixed 7x7 average pooling over two frames.
_SHAPES: dict[str, tuple[int, ...]] = {
    "inception_v3": (3, 96, 96),
    "vit_": (3, 224, 224),
    "swin_": (3, 224, 224),
    "swin_v2_": (3, 256, 256),
    "maxvit_": (3, 224, 224),
    "s3d": (3, 16, 224, 224),
    "mvit_": (3, 16, 224, 224),
    "swin3d_": (3, 8, 112, 112),
}
_DEFAULT: dict[str, tuple[int, ...]] = {
    "classification": (3, 64, 64),
    "segmentation": (3, 64, 64),
    "video": (3, 8, 64, 64),
}


def _shape(name: str, kind: str) -> tuple[int, ...]:
    fitting = [prefix for prefix in _SHAPES if name.startswith(prefix)]
    return _SHAPES[max(fitting, key=len)] if fitting else _DEFAULT[kind]


def torchvision_models() -> dict[str, Entry]:
    """Every classification, segmentation and video model of torchvision, in that order."""
    from torchvision import models

    modules = {"classification": models, "segmentation": models.segmentation, "video": models.video}
    entries: dict[str, Entry] = {}
    for kind, module in modules.items():
        for name in models.list_models(module=module):
            options: dict[str, object] = {"weights": None}
            if kind == "segmentation":
                options["weights_backbone"] = None
            if name in {"googlenet", "inception_v3"}:
                options["init_weights"] = True

            def build(name: str = name, options: dict[str, object] = options) -> nn.Module:
                return models.get_model(name, **options)

            entries[name] = Entry(name, kind, _shape(name, kind), build)
    return entries
