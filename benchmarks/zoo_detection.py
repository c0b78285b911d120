"""Torchvision's detectors, whole: backbone, pyramid and heads, traced without their proposals and matching."""

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import Entry

from curlfx.sources import detection_forward

__all__ = ["detection_models"]

_CLASSES = 4
# Small images: every level of a pyramid keeps at least one pixel. SSD300 and SSDlite320 have a shape of their own.
_SIDES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
_SIDE = 96


def detection_models() -> dict[str, Entry]:
    """Every detector of torchvision; ``model(images)`` is what its `detection_forward` computes, as a tuple."""
    from torchvision import models

    entries: dict[str, Entry] = {}
    for name in models.list_models(module=models.detection):

        def build(name: str = name) -> nn.Module:
            model = models.get_model(name, weights=None, weights_backbone=None, num_classes=_CLASSES)
            stand_in = detection_forward(model)

            def forward(images: Tensor) -> tuple[Tensor, ...]:  # a function of its own, as `torch.export` wants it
                return tuple(pytree.tree_leaves(stand_in(model, images)))

            model.forward = forward
            return model

        side = _SIDES.get(name, _SIDE)
        entries[name] = Entry(name, "detection", (3, side, side), build)
    return entries
