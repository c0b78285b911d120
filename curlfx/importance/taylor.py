"""Taylor: what closing a channel does to the loss, to first order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from curlfx.coupling import GroupId
from curlfx.errors import DataError, ModelError
from curlfx.importance.divergence import Softmax
from curlfx.importance.gated import GatedNetwork
from curlfx.importance.request import Request
from curlfx.importance.scores import Values
from curlfx.importance.together import fitting, matching, quiet
from curlfx.progress import StepEvent, StepTimer


def taylor(request: Request) -> dict[GroupId, Values]:
    """Mean over images of ``(dL/dg)²``, where ``g`` is the gate of a channel and ``L`` the cross-entropy of one image.

    The gate multiplies the channel in front of all of its readers, so ``dL/dg`` is the sum of gradient times activation
    over positions and readers: what removing the whole coupled channel does to the loss, to first order. Where the
    data brings classes, the loss is taken to them; without, to the class that the network itself predicts. Logits are
    taken before a final softmax. Eval mode; no autocast; a dense prediction counts as the mean over its pixels. Work: a
    forward and a backward pass per image.

    Shapes: scores ``(width,)`` per group.
    Units: squared nats.
    Raises: DataError when the images or the classes do not fit the network; ModelError when the output is no
        distribution over classes.
    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (arXiv:1906.10771), equation 8, at gates.
    """
    coupling = request.coupling
    if not coupling.total:
        return {}
    network = GatedNetwork(request.traced, coupling)
    if not isinstance(network.divergence, Softmax):
        raise ModelError(
            "importance 'taylor': the network ends in a sigmoid, and cross-entropy over classes is not its loss; use "
            "importance 'kl'"
        )
    gates = network.ones().requires_grad_()
    sums = torch.zeros(gates.numel(), dtype=torch.float64, device=gates.device)
    count = request.proxy.count or 0
    timer = StepTimer(count)
    with quiet(network.device, gradient=True):
        for number, (images, classes) in enumerate(request.proxy.labelled(gates.device, gates.dtype), start=1):
            for position in range(len(images)):
                given = None if classes is None else classes[position : position + 1]
                loss = _loss(network, gates, images[position : position + 1], given)
                (gradient,) = torch.autograd.grad(loss, gates)
                sums += gradient.double().square()
            if request.progress is not None:
                left = timer.seconds_left(number) if number <= count else None
                request.progress.on_step(StepEvent("score", 0, number, max(count, number), seconds_left=left))
    values = (sums / request.proxy.images).cpu().numpy()
    return {group.id: values[group.channels] for group in coupling.groups}


def _loss(network: GatedNetwork, gates: Tensor, image: Tensor, given: Tensor | None) -> Tensor:
    """Cross-entropy of one image; a network that takes only batches of one size gets the image that many times.

    Shapes: image ``(1, ...)``; given ``(1,)``, or ``(1, *S)`` where every pixel has a class.
    Raises: DataError, ModelError.
    """
    size = network.fixed_batch or 1
    with fitting(image), matching(image):
        batch = network.on_device(image.expand(size, *image.shape[1:]))
        logits: Tensor = network.gated.run(network.values(batch, gates))
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
