"""Torchvision's detectors without their proposals and matching, so that they can be traced whole.

A detector decides by the values of its tensors which boxes it looks at, which no graph can hold. What its parameters
compute does not depend on that: backbone and pyramid make features, the heads on them score anchors, and the heads on
regions score what is pooled from the features box by box. The functions here compute all of it with fixed regions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curlfx.errors import ModelError

if TYPE_CHECKING:
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
    from torchvision.models.detection.ssd import SSD
    from torchvision.ops import MultiScaleRoIAlign

DetectionForward = Callable[[Any, Tensor], dict[str, Any]]
"""``forward(model, images)`` with normalised images ``(N, 3, H, W)``."""


def detection_forward(model: nn.Module, *, regions: int = 1) -> DetectionForward:
    """The function to trace in place of the ``forward`` of one of torchvision's detectors.

        forward = curlfx.detection_forward(model)
        traced = curlfx.trace(model, images, forward=forward)

    It takes images as the detector's ``transform`` would give them, in one tensor, and returns what the heads compute:
    scores, boxes, masks and keypoints, batch first. It reads every parameter.

    Args:
        regions: Two-stage detectors pool each level of the pyramid in regions × regions equal tiles, which stand for
            the boxes that a detector would propose. MACs of the heads on regions count once per tile: one is enough to
            couple and slim; 16 tiles a side on four levels come near the 1000 proposals of a whole image.

    Raises: ModelError for any other network, or for fewer than one region.
    """
    if regions < 1:
        raise ModelError(f"regions = {regions}: want 1 or more")
    forward = forward_for(model, regions=regions)
    if forward is None:
        raise ModelError(
            f"{type(model).__name__} is none of torchvision's Faster, Mask or Keypoint R-CNN, RetinaNet, FCOS and SSD; "
            "write a function forward(model, images) that calls its submodules and trace that"
        )
    return forward


def forward_for(model: nn.Module, *, regions: int = 1) -> DetectionForward | None:
    """What to trace in place of a network's ``forward``, as `detection_forward`; None where its own will do."""
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork
    from torchvision.models.detection.ssd import SSD

    if isinstance(model, RetinaNet | FCOS | SSD):
        return anchor_forward
    two_stage = isinstance(model, GeneralizedRCNN)
    if two_stage and isinstance(model.rpn, RegionProposalNetwork) and isinstance(model.roi_heads, RoIHeads):
        return functools.partial(region_forward, regions=regions)
    return None


def anchor_forward(model: RetinaNet | FCOS | SSD, images: Tensor) -> dict[str, Tensor]:
    """What the head of a one-stage detector computes for every anchor.

    Shapes: images ``(N, 3, H, W)``, outputs ``(N, anchors, k)``.
    """
    outputs: dict[str, Tensor] = model.head(list(_features(model, images).values()))
    return outputs


def region_forward(model: GeneralizedRCNN, images: Tensor, *, regions: int = 1) -> dict[str, Any]:
    """What the heads of a two-stage detector compute for every anchor and for fixed regions.

    Shapes: images ``(N, 3, H, W)``, outputs ``(N, anchors of a place, h, w)`` by level and ``(N, R, ...)``, R regions.
    """
    features, heads = _features(model, images), model.roi_heads
    objectness, deltas = model.rpn.head(list(features.values()))
    outputs = {"objectness": objectness, "deltas": deltas}
    pooled = _pooled(features, heads.box_roi_pool, regions)
    scores, boxes = heads.box_predictor(heads.box_head(pooled.flatten(0, 1)))
    outputs["scores"], outputs["boxes"] = _by_image(scores, pooled), _by_image(boxes, pooled)
    if heads.has_mask():
        pooled = _pooled(features, heads.mask_roi_pool, regions)
        outputs["masks"] = _by_image(heads.mask_predictor(heads.mask_head(pooled.flatten(0, 1))), pooled)
    if heads.has_keypoint():
        pooled = _pooled(features, heads.keypoint_roi_pool, regions)
        keypoints = heads.keypoint_predictor(heads.keypoint_head(pooled.flatten(0, 1)))
        outputs["keypoints"] = _by_image(keypoints, pooled)
    return outputs


def _features(model: Any, images: Tensor) -> dict[str, Tensor]:
    features: Tensor | dict[str, Tensor] = model.backbone(images)
    return {"0": features} if isinstance(features, Tensor) else features


def _pooled(features: dict[str, Tensor], pool: MultiScaleRoIAlign, regions: int) -> Tensor:
    """Every tile of every level at the size of a pooled region: RoIAlign of a grid of boxes, one sample per bin.

    Shapes: features ``(N, C, h, w)`` by level, output ``(N, R, C, *pool.output_size)``, R = levels · regions².
    """
    levels = [feature for name, feature in features.items() if name in pool.featmap_names]
    return torch.cat([_tiles(level, pool.output_size, regions) for level in levels], 1)


def _by_image(output: Tensor, pooled: Tensor) -> Tensor:
    """Shapes: output ``(N · R, ...)``, pooled ``(N, R, ...)``; result ``(N, R, ...)``."""
    result: Tensor = output.unflatten(0, (-1, pooled.shape[1]))
    return result


def _tiles(feature: Tensor, size: Sequence[int], regions: int) -> Tensor:
    """Shapes: feature ``(N, C, h, w)``, output ``(N, regions², C, *size)``."""
    height, width = size
    whole = functional.interpolate(feature, (regions * height, regions * width), mode="bilinear", align_corners=False)
    cut = whole.unflatten(3, (regions, width)).unflatten(2, (regions, height))
    tiles: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return tiles
