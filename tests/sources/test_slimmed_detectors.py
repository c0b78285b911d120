"""Detectors that are made narrow in place detect and train, through their own forward."""

import copy
import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import flatten_outputs, random_keep, relative_error
from curlfx.coupling import Coupling, couple
from curlfx.deploy import export_onnx
from curlfx.graph import trace
from curlfx.importance import score
from curlfx.inplace import slim_
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.planning import SlimPlan, plan
from curlfx.sources import detection_forward
from tests.sources.test_detection import CLASSES, DETECTORS, SIDE, images, traced

SLOW = ("faster_rcnn", "keypoint_rcnn", "retinanet_v2", "fcos")
MOST = [
    "faster_rcnn_of_one_level",
    "mask_rcnn",
    "retinanet",
    "ssd",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in SLOW),
]


@functools.cache
def made_narrow(name: str) -> tuple[nn.Module, nn.Module, Coupling, SlimPlan]:
    """A dense detector and the same one at half its parameters, with what was decided."""
    dense, graph, coupling = traced(name)
    decided = plan(graph, coupling, score(graph, coupling, "random"), {"params": "50%"}, round_to=1)
    model = DETECTORS[name]().double().eval()
    model.load_state_dict(dense.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a detector that cannot be narrowed in place
        assert slim_(model, decided, images(), forward=detection_forward(model)) is model
    return dense, model, coupling, decided


def photographs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of unlike shapes, as a detector takes them."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *shape, generator=generator).to(dtype) for shape in ((50, 64), (64, 64))]


def truth() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0], [20.0, 10.0, 60.0, 44.0]])
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    masks[:, 12:38, 22:28] = 1
    keypoints = torch.cat([torch.rand(2, 4, 2) * 20 + 10, torch.ones(2, 4, 1)], -1)
    labels = torch.tensor([1, 2])
    first = {"boxes": boxes, "labels": labels, "masks": masks[:, :50], "keypoints": keypoints}
    return [first, {**first, "masks": masks}]


@pytest.mark.parametrize("name", MOST)
def test_it_detects(name):
    dense, model, _, _ = made_narrow(name)
    assert sum(p.numel() for p in model.parameters()) < 0.55 * sum(p.numel() for p in dense.parameters())
    with torch.no_grad():
        ours, theirs = model(photographs()), dense(photographs())
    for found, wanted in zip(ours, theirs, strict=True):
        assert list(found) == list(wanted)
        assert len(found["boxes"]) > 0
        for key, tensor in found.items():
            assert tensor.shape[1:] == wanted[key].shape[1:]
            assert tensor.dtype == wanted[key].dtype
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", MOST[:-2])  # GroupNorm averages over them
def test_it_detects_what_the_dense_one_does_without_these_channels(name):
    """The dense detector's own forward, RoIAlign and all, with zeros where a layer reads a channel that went."""
    dense, model, coupling, decided = made_narrow(name)
    hooks = close_inputs(dense, coupling, coupling.alive(decided.keep))
    try:
        with torch.no_grad():
            assert relative_error(model(photographs()), dense(photographs())) <= 1e-9
    finally:
        for hook in hooks:
            hook.remove()


def close_inputs(model: nn.Module, coupling: Coupling, alive: object) -> list[torch.utils.hooks.RemovableHandle]:
    """Zero what convolutions and linear layers read of channels that went; exact where nothing averages over them."""
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            axis = 0 if isinstance(module, nn.ConvTranspose2d) else 1
            mask = stays(coupling, alive, f"{name}.weight", module.weight, axis)
            hooks.append(module.register_forward_pre_hook(functools.partial(closed_before, mask)))
        elif name == "backbone.features":  # SSD divides by the norm over these channels
            mask = stays(coupling, alive, f"{name}.1.weight", module[1].weight, 0)
            hooks.append(module.register_forward_hook(functools.partial(closed_after, mask)))
    return hooks


def stays(coupling: Coupling, alive: object, name: str, weight: Tensor, axis: int) -> Tensor:
    kept = torch.ones(weight.shape, dtype=torch.bool)
    for labels in coupling.parameter_labels(name):
        kept &= torch.from_numpy(alive[labels])
    return kept.movedim(axis, 0).reshape(weight.shape[axis], -1).any(1)


def closed_before(mask: Tensor, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * (mask if isinstance(module, nn.Linear) else mask.view(1, -1, 1, 1)),)


def closed_after(mask: Tensor, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output * mask.view(1, -1, 1, 1)


@pytest.mark.parametrize("name", MOST)
def test_it_trains(name):
    model = copy.deepcopy(made_narrow(name)[1]).float().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = model(photographs(torch.float32), truth())
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    for part, module in model.named_children():
        if any(True for _ in module.parameters()):
            assert any(key.startswith(part) and gradient.abs().max() > 0 for key, gradient in gradients.items())
    optimiser.step()
    after = model(photographs(torch.float32), truth())
    assert set(after) == set(losses)
    assert all(torch.isfinite(loss) for loss in after.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssd", pytest.param("mask_rcnn", marks=pytest.mark.nightly)])
def test_what_is_traced_of_it_runs_on_onnxruntime(name, tmp_path):
    import onnxruntime

    _, graph, coupling = traced(name)
    slim = run(graph, [Slim(coupling, random_keep(coupling.groups))])[0].to(torch.float32).module
    export_onnx(slim, (images().float(),), tmp_path / "slim.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = images(batch).float()
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(slim(x))
        outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert relative_error([torch.from_numpy(output) for output in outputs], expected) <= 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet", "ssd"])
def test_its_own_forward_is_exported_as_the_dense_ones(name, tmp_path):
    """Torchvision supports its detectors in the exporter for TorchScript, one image of one size."""
    import onnxruntime

    for model in copy.deepcopy(made_narrow(name)[:2]):
        model.nms_thresh = 1.0  # of one-stage detectors: near a threshold, round-off decides who suppresses whom
        x = photographs(torch.float32)[1:]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(model.float(), (x,), tmp_path / "own.onnx", dynamo=False, opset_version=18)
            (expected,) = model(x)
        session = onnxruntime.InferenceSession(tmp_path / "own.onnx", providers=["CPUExecutionProvider"])
        outputs = dict(zip(expected, session.run(None, {session.get_inputs()[0].name: x[0].numpy()}), strict=True))
        found = torch.from_numpy(outputs["scores"]).sort().values
        assert relative_error(found, expected["scores"].sort().values) <= 1e-4


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn_v2"]
)
def test_detectors_of_torchvision(name):
    from torchvision.models import get_model

    model = get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    x = torch.rand(2, 3, 320 if name.startswith("ssd") else 96, 320 if name.startswith("ssd") else 96)
    graph = trace(model, x, forward=detection_forward(model))
    assert graph.notes == ()
    coupling = couple(graph)
    decided = plan(graph, coupling, score(graph, coupling, "random"), {"params": "50%"}, round_to=1)
    before = sum(p.numel() for p in model.parameters())
    assert slim_(model, decided, x, forward=detection_forward(model)) is model
    assert sum(p.numel() for p in model.parameters()) < 0.55 * before
    with torch.no_grad():
        detections = model(photographs(torch.float32))
    assert all(torch.isfinite(tensor).all() for tensor in flatten_outputs(detections))
    losses = model.train()(photographs(torch.float32), truth())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
