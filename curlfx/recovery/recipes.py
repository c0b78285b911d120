"""How a slim network is recovered, as values: the published recipes, and ours for a quick job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from curlfx.errors import ConfigError, did_you_mean
from curlfx.recovery.overparam import Overparam
from curlfx.recovery.settings import TrainSettings

UNREFINED = TrainSettings(
    epochs=0, batch_size=32, lr=1e-4, nesterov=False, weight_decay=4e-5, decay_vectors=True, temperature=1.0
)
"""The second training of CURL's code, but for its 16 epochs."""
_QUICK = TrainSettings(epochs=8, batch_size=64, lr=0.02, warmup_epochs=1.0)
UNENLARGED = Overparam(replace(_QUICK, epochs=0, lr=0.01, distillation=0.0))
"""The training of the enlarged network, but for its epochs."""


@dataclass(frozen=True)
class Recipe:
    """Up to three trainings of the slim network, one after the other; 0 epochs leave one out.

    Attributes:
        train: The second: of the weights alone.
        expand: Whether the second sees the expanded data (every image in six versions) instead of the images alone.
        refine: The third: of the weights and of a soft label for every image.
        expand_refine: Whether the third sees the expanded data.
        overparam: The first: of the network enlarged by linear over-parameterisation.
    """

    train: TrainSettings
    expand: bool = False
    refine: TrainSettings = UNREFINED
    expand_refine: bool = True
    overparam: Overparam = UNENLARGED

    def on(self, *, seed: int, device: str) -> Recipe:
        """The same for a seed and a device."""
        train, refine = (replace(one, seed=seed, device=device) for one in (self.train, self.refine))
        enlarged = replace(self.overparam, train=replace(self.overparam.train, seed=seed, device=device))
        return replace(self, train=train, refine=refine, overparam=enlarged)


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
        "overparam": Recipe(
            replace(_QUICK, epochs=0),
            overparam=replace(UNENLARGED, train=replace(UNENLARGED.train, epochs=_QUICK.epochs)),
        ),
    }
)
"""Recipes by name.

- ``distillation``: cross-entropy and distillation from the dense network, a few epochs.
- ``curl``: for few images. Mixup and distillation; then label refinement on the expanded data.
- ``curl-large``: for many images. Cross-entropy alone.
- ``overparam``: the enlarged network, with cross-entropy and similarities of the dense one's features, a few epochs; in
  front of another recipe (``("overparam", "curl")``) that one follows.

Source: the two of CURL, arXiv:1911.08114, and its code (150 epochs: ResNet-50 on CUB-200; 200 for MobileNetV2).
Over-parameterisation: Qian et al., arXiv:2204.11444; epochs and learning rate are ours.
"""


def find_recipe(names: str | Sequence[str]) -> Recipe:
    """The recipe of that name, or ``overparam`` and the one behind it. Raises: ConfigError."""
    match [names] if isinstance(names, str) else list(names):
        case [str(name)] if name in RECIPES:
            return RECIPES[name]
        case ["overparam", str(name)] if name in RECIPES and name != "overparam":
            return replace(RECIPES[name], overparam=RECIPES["overparam"].overparam)
    wrong = next((name for name in ([names] if isinstance(names, str) else names) if name not in RECIPES), None)
    hint = "" if wrong is None else did_you_mean(wrong, RECIPES)
    raise ConfigError(f"recipe = {names!r}: want one of {', '.join(RECIPES)}, or [overparam, ONE OF THE OTHERS]{hint}")
