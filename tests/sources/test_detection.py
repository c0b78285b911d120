"""Torchvision's detectors are traced whole: every parameter, coupled as their own forward couples them."""

import functools
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import curlfx
from benchmarks.trial import random_keep, randomise, relative_error
from curlfx.coupling import Coupling, couple
from curlfx.errors import ModelError
from curlfx.graph import TracedModel, check, trace
from curlfx.passes.gate import Gate, set_gates
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.sources import forward_for, input_shape, load_model
from curlfx.sources.detection import _pooled, detection_forward

CLASSES = 3
SIDE = 64
ALL = torchvision.models.list_models(module=detection)


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 4, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def frozen_block(inputs: int, outputs: int) -> nn.Sequential:
    """As in detectors with a trained backbone: a normalisation of buffers, by arithmetic and no op of its own."""
    norm = FrozenBatchNorm2d(outputs)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 1.5)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 4, 1, bias=False), norm, nn.ReLU())


def pyramid(width: int = 8, kind: Callable[[int, int], nn.Module] = block) -> BackboneWithFPN:
    body = nn.Sequential(kind(3, 6), kind(6, 7))
    return BackboneWithFPN(body, {"0": "0", "1": "1"}, [6, 7], width, LastLevelMaxPool())


def anchors(levels: int = 3) -> AnchorGenerator:
    return AnchorGenerator(((16, 32),) * levels, ((0.5, 1.0),) * levels)


def sizes() -> dict[str, object]:
    return {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def two_stage(kind: type, **options: object) -> nn.Module:
    return kind(
        pyramid(kind=frozen_block),
        rpn_anchor_generator=anchors(),
        rpn_post_nms_top_n_test=20,
        box_head=TwoMLPHead(8 * 49, 10),
        box_predictor=FastRCNNPredictor(10, CLASSES),
        box_score_thresh=0.0,
        box_detections_per_img=8,
        **sizes(),
        **options,
    )


def faster_rcnn() -> nn.Module:
    return two_stage(detection.FasterRCNN)


def faster_rcnn_of_one_level() -> nn.Module:
    body = nn.Sequential(block(3, 6), block(6, 8))
    body.out_channels = 8
    pool = MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2)
    head = TwoMLPHead(8 * 9, 10)
    predictor = FastRCNNPredictor(10, CLASSES)
    return detection.FasterRCNN(
        body,
        rpn_anchor_generator=anchors(1),
        rpn_post_nms_top_n_test=20,
        box_roi_pool=pool,
        box_head=head,
        box_predictor=predictor,
        box_score_thresh=0.0,
        **sizes(),
    )


def mask_rcnn() -> nn.Module:
    predictor = detection.mask_rcnn.MaskRCNNPredictor(5, 6, CLASSES)
    return two_stage(detection.MaskRCNN, mask_head=MaskRCNNHeads(8, [7, 5], 1), mask_predictor=predictor)


def keypoint_rcnn() -> nn.Module:
    predictor = detection.keypoint_rcnn.KeypointRCNNPredictor(6, 4)
    head = KeypointRCNNHeads(8, [9, 6])
    return two_stage(detection.KeypointRCNN, keypoint_head=head, keypoint_predictor=predictor)


def retinanet() -> nn.Module:
    return detection.RetinaNet(pyramid(), CLASSES, anchor_generator=anchors(), score_thresh=0.0, **sizes())


def retinanet_v2() -> nn.Module:
    norm = functools.partial(nn.GroupNorm, 4)
    head = RetinaNetHead(16, 4, CLASSES, norm_layer=norm)
    return detection.RetinaNet(pyramid(16), CLASSES, anchor_generator=anchors(), head=head, score_thresh=0.0, **sizes())


def fcos() -> nn.Module:
    one = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    head = FCOSHead(64, 1, CLASSES, num_convs=1)
    return detection.FCOS(pyramid(64), CLASSES, anchor_generator=one, head=head, score_thresh=0.0, **sizes())


class Scaled(nn.Module):
    """A backbone like that of SSD300: the first feature map has its channels' norm divided out."""

    out_channels = (6, 7)

    def __init__(self) -> None:
        super().__init__()
        self.features, self.deeper = block(3, 6), block(6, 7)
        self.scale_weight = nn.Parameter(torch.ones(6) * 20)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.features(x)
        return {"0": self.scale_weight.view(1, -1, 1, 1) * functional.normalize(x), "1": self.deeper(x)}


def ssd() -> nn.Module:
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9])
    black, white = [0.0] * 3, [1.0] * 3
    return SSD(Scaled(), boxes, (SIDE, SIDE), CLASSES, image_mean=black, image_std=white, score_thresh=0.0)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build
    for build in (
        faster_rcnn,
        faster_rcnn_of_one_level,
        mask_rcnn,
        keypoint_rcnn,
        retinanet,
        retinanet_v2,
        fcos,
        ssd,
    )
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, TracedModel, Coupling]:
    model = randomise(DETECTORS[name]().double()).eval()
    graph = trace(model, images(), forward=detection_forward(model))
    return model, graph, couple(graph)


def images(batch: int = 2, side: int = SIDE) -> Tensor:
    return torch.rand(batch, 3, side, side, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_every_parameter_is_read_and_every_batch_size_taken(name):
    model, graph, _ = traced(name)
    check(graph)
    assert graph.notes == ()
    assert graph.dynamic_batch
    assert list(graph.module.state_dict()) == list(model.state_dict())
    x = images(3)
    with torch.no_grad():
        assert relative_error(graph.module(x), detection_forward(model)(model, x)) == 0


@pytest.mark.parametrize("name", DETECTORS)
def test_only_what_the_detector_puts_out_is_frozen(name):
    _, _, coupling = traced(name)
    outputs = ("rpn.head.cls_logits", "rpn.head.bbox_pred", "box_predictor", "mask_fcn_logits", "kps_score_lowres")
    outputs += ("classification_head", "regression_head")
    frozen = [site.name for found in coupling.frozen for site in found.sites]
    assert all(any(output in name for output in outputs) for name in frozen)
    assert not any(".conv." in name for name in frozen)
    assert coupling.unsupported == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_slim_equals_gated(name):
    _, graph, coupling = traced(name)
    keep = random_keep(coupling.groups)
    slim, _ = run(graph, [Slim(coupling, keep)])
    statistics = "kept" if any(group.statistics_change for group in coupling.groups) else "all"
    gated, _ = run(graph, [Gate(coupling, statistics=statistics)], own_weights=False)
    set_gates(gated.module, torch.from_numpy(coupling.alive(keep)))
    x = images(3)
    with torch.no_grad():
        assert relative_error(slim.module(x), gated.module(x)) <= 1e-9
        assert relative_error(slim.module(x), graph.module(x)) > 1e-3


def test_regions_are_what_roi_align_gives_of_a_grid_of_boxes():
    features = {"0": torch.rand(2, 5, 16, 16), "1": torch.rand(2, 5, 8, 8), "pool": torch.rand(2, 5, 4, 4)}
    pool = MultiScaleRoIAlign(["0", "1"], output_size=(4, 2), sampling_ratio=1)
    pooled = _pooled(features, pool, 2)
    assert pooled.shape == (2, 8, 5, 4, 2)
    grid = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [1, 1, 2, 2]]) / 2
    for level, name in enumerate(("0", "1")):
        boxes = [grid * features[name].shape[-1]] * 2
        theirs = roi_align(features[name], boxes, (4, 2), sampling_ratio=1, aligned=True)
        torch.testing.assert_close(pooled[:, 4 * level : 4 * level + 4].flatten(0, 1), theirs)


@pytest.mark.slow
def test_more_regions_give_more_of_them_and_the_same_groups():
    model, graph, coupling = traced("mask_rcnn")
    more = trace(model, images(), forward=detection_forward(model, regions=2))
    assert graph.module(images())["scores"].shape == (2, 2, CLASSES)
    assert more.module(images(3))["scores"].shape == (3, 8, CLASSES)
    assert more.module(images(3))["masks"].shape == (3, 8, CLASSES, 28, 28)
    assert [group.sites for group in couple(more).groups] == [group.sites for group in coupling.groups]


def test_what_is_no_detector_of_torchvision_is_refused():
    with pytest.raises(ModelError, match=r"Sequential is none of torchvision's .*; write a function forward\(model, "):
        curlfx.detection_forward(nn.Sequential())
    with pytest.raises(ModelError, match="regions = 0: want 1 or more"):
        curlfx.detection_forward(faster_rcnn(), regions=0)


def test_other_networks_have_a_forward_of_their_own():
    assert forward_for(torchvision.models.resnet18(weights=None)) is None


@pytest.mark.parametrize(
    ("name", "side"), [("ssd300_vgg16", 300), ("ssdlite320_mobilenet_v3_large", 320), ("retinanet_resnet50_fpn", 800)]
)
def test_the_shape_on_record_is_what_the_detector_scales_images_to(name, side):
    assert input_shape(f"torchvision:{name}") == (3, side, side)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALL)
def test_of_torchvisions_detectors_all_but_the_outputs_is_free(name):
    model = load_model(f"torchvision:{name}", num_classes=CLASSES)
    side = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 96)
    graph = trace(model, torch.rand(2, 3, side, side), forward=forward_for(model))
    assert graph.notes == ()
    assert graph.dynamic_batch
    names = [site.name for found in couple(graph).frozen for site in found.sites]
    heads = ("rpn.head.cls_logits", "rpn.head.bbox_pred", "box_predictor", "mask_fcn_logits", "kps_score_lowres")
    heads += ("cls_logits", "bbox_reg", "bbox_ctrness", "head.classification_head.module_list.")
    heads += ("head.regression_head.module_list.",)
    assert all(any(head in name for head in heads) for name in names)
