"""How a slim network is recovered, as values: the published recipes, and ours for a quick job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from curlfx.errors import ConfigError
from curlfx.recovery.settings import TrainSettings

UNREFINED = TrainSettings(
    epochs=0, batch_size=32, lr=1e-4, nesterov=False, weight_decay=4e-5, decay_vectors=True, temperature=1.0
)
"""The second training of CURL's code, but for its 16 epochs."""


@dataclass(frozen=True)
class Recipe:
    """Two trainings of the slim network, one after the other.

    Attributes:
        train: The first: of the weights alone.
        expand: Whether the first sees the expanded data (every image in six versions) instead of the images alone.
        refine: The second: of the weights and of a soft label for every image. 0 epochs leave it out.
        expand_refine: Whether the second sees the expanded data.
    """

    train: TrainSettings
    expand: bool = False
    refine: TrainSettings = UNREFINED
    expand_refine: bool = True

    def on(self, *, seed: int, device: str) -> Recipe:
        """The same for a seed and a device."""
        train, refine = (replace(one, seed=seed, device=device) for one in (self.train, self.refine))
        return replace(self, train=train, refine=refine)


_QUICK = TrainSettings(epochs=8, batch_size=64, lr=0.02, warmup_epochs=1.0)
_LARGE = TrainSettings(
    epochs=100,
    batch_size=512,
    lr=0.1,
    nesterov=False,
    weight_decay=4e-5,
    decay_vectors=True,
    warmup_epochs=5.0,
    distillation=0.0,
)
_SMALL = replace(_LARGE, epochs=150, batch_size=32, lr=0.01, distillation=0.7, temperature=2.0, mixup=1.0)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "distillation": Recipe(_QUICK),
        "curl": Recipe(_SMALL, refine=replace(UNREFINED, epochs=16)),
        "curl-large": Recipe(_LARGE),
    }
)
"""Recipes by name.

- ``distillation``: cross-entropy and distillation from the dense network, a few epochs.
- ``curl``: for few images. Mixup and distillation; then label refinement on the expanded data.
- ``curl-large``: for many images. Cross-entropy alone.

Source: the two of CURL, arXiv:1911.08114, and its code (150 epochs: ResNet-50 on CUB-200; 200 for MobileNetV2).
"""


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises: ConfigError."""
    if name not in RECIPES:
        raise ConfigError(f"recipe = {name!r}: want one of {', '.join(RECIPES)}")
    return RECIPES[name]
