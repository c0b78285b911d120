"""Taylor: what closing a channel does to the loss, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curlfx.coupling import GroupId
from curlfx.errors import DataError, ModelError
from curlfx.importance.request import Request
from curlfx.importance.scores import Values
from curlfx.passes.gate import GATES, Gate
from curlfx.passes.pipeline import run
from curlfx.progress import StepEvent, StepTimer


def taylor(request: Request) -> dict[GroupId, Values]:
    """Mean over images of ``(dL/dg)²``, where ``g`` is the gate of a channel and ``L`` the cross-entropy of one image.

    The gate multiplies the channel in front of all of its readers, so ``dL/dg`` is the sum of gradient times activation
    over positions and readers: what removing the whole coupled channel does to the loss, to first order. Where the
    data brings classes, the loss is taken to them; without, to the class that the network itself predicts. Eval mode;
    no autocast; a dense prediction counts as the mean over its pixels. Work: a forward and a backward pass per image.

    Shapes: scores ``(width,)`` per group.
    Units: squared nats.
    Raises: DataError when the images or the classes do not fit the network; ModelError when the output is no
        distribution over classes.
    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (arXiv:1906.10771), equation 8, at gates.
    """
    coupling = request.coupling
    if not coupling.total:
        return {}
    averaged = any(group.statistics_change for group in coupling.groups)
    gated, _ = run(request.traced, [Gate(coupling, statistics="kept" if averaged else "all")])
    module = gated.module.eval().requires_grad_(False)
    gates = module.get_buffer(GATES).requires_grad_()
    size = 1 if gated.dynamic_batch else len(gated.example_inputs[0])
    sums = torch.zeros(gates.numel(), dtype=torch.float64, device=gates.device)
    count = request.proxy.count or 0
    timer = StepTimer(count)
    with torch.enable_grad(), torch.autocast(gates.device.type, enabled=False):
        for number, (images, classes) in enumerate(request.proxy.labelled(gates.device, gates.dtype), start=1):
            for position in range(len(images)):
                given = None if classes is None else classes[position : position + 1]
                loss = _loss(module, images[position : position + 1], given, size)
                (gradient,) = torch.autograd.grad(loss, gates)
                sums += gradient.double().square()
            if request.progress is not None:
                left = timer.seconds_left(number) if number <= count else None
                request.progress.on_step(StepEvent("score", 0, number, max(count, number), seconds_left=left))
    values = (sums / request.proxy.images).cpu().numpy()
    return {group.id: values[group.channels] for group in coupling.groups}


def _loss(module: nn.Module, image: Tensor, given: Tensor | None, size: int) -> Tensor:
    """Cross-entropy of one image; a network that takes only batches of ``size`` gets the image that many times.

    Shapes: image ``(1, ...)``; given ``(1,)``, or ``(1, *S)`` where every pixel has a class.
    Raises: DataError, ModelError.
    """
    try:
        logits = _logits(module(image.expand(size, *image.shape[1:])))
    except RuntimeError as cause:
        raise DataError(f"data: images {tuple(image.shape[1:])} do not fit the network: {cause}") from cause
    if logits.ndim < 2 or len(logits) != size or logits.shape[1] < 2:
        raise ModelError(
            f"importance 'taylor': the output is {tuple(logits.shape)} for {size} images: want (images, classes, …) "
            "with at least 2 classes; use importance 'magnitude' for other networks"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("importance 'taylor': the network's own output has NaN or infinite values; check its weights")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    classes = logits.detach().argmax(1)[:1] if given is None else given
    if classes.shape != (1, *logits.shape[2:]) or bool(((classes < 0) | (classes >= logits.shape[1])).any()):
        raise DataError(
            f"data: classes {tuple(classes.shape[1:])} from {int(classes.min())} to {int(classes.max())} do not fit "
            f"the output {tuple(logits.shape[1:])}: want one of 0 to {logits.shape[1] - 1} for every image or pixel"
        )
    return functional.cross_entropy(logits, classes.expand(size, *classes.shape[1:]))


def _logits(output: Any) -> Tensor:
    """The first tensor of a structured output, ``out`` before others in a mapping. Raises: ModelError."""
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping) and output:
            output = output["out"] if "out" in output else next(iter(output.values()))
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        else:
            kind = type(output).__name__
            raise ModelError(f"importance 'taylor': the network returns a {kind}: want logits in a tensor")
    return output
