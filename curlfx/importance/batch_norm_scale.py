"""BatchNorm scale: how much batch normalisation lets of a channel through."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from curlfx.coupling import GroupId
from curlfx.errors import ModelError, WeightsError
from curlfx.importance.request import Request
from curlfx.importance.scores import Values
from curlfx.ops.call import named_arguments

NAME = "bn-scale"


def batch_norm_scale(request: Request) -> dict[GroupId, Values]:
    """Mean absolute scale (gamma) of a channel over all batch normalisations that it passes; looks at no image.

    A normalisation counts for every channel that one of its scales belongs to; a whole block (a group of a convolution)
    gets the mean over its channels. Scales of other normalisations do not count. Scores are not divided by anything, as
    the scales already are a share of unit variance.

    Shapes: scores ``(width,)`` per group.
    Raises: ModelError naming a group without batch normalisation, or one without scales; WeightsError for a scale that
        is not finite.
    Source: Network Slimming (arXiv:1708.06519), section 3, without its sparsity training.
    """
    coupling = request.coupling
    sums, counts = np.zeros(coupling.total + 1), np.zeros(coupling.total + 1)
    for name in _scales(request):
        scales = request.traced.parameter(name).detach().abs().double().cpu().numpy()
        if not np.isfinite(scales).all():
            raise WeightsError(f"parameter '{name}' has NaN or infinite values; {NAME} cannot rank its channels")
        for array in coupling.channels_in(coupling.parameter_labels(name)):
            labels = np.broadcast_to(array, scales.shape)
            sums += np.bincount(labels, weights=scales, minlength=sums.size)
            counts += np.bincount(labels, minlength=counts.size)
    for group in coupling.groups:
        bare = np.flatnonzero(counts[group.channels] == 0)
        if bare.size:
            raise ModelError(
                f"importance '{NAME}': no batch normalisation with a scale reads {bare.size} of the {group.width} "
                f"channels of group '{group.id}'; freeze that layer (ignored_layers), or use another criterion"
            )
    return {group.id: sums[group.channels] / counts[group.channels] for group in coupling.groups}


def _scales(request: Request) -> list[str]:
    """Names of the scales of all batch normalisations, each once."""
    names: dict[str, None] = {}
    for node in request.traced.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.name == "aten::batch_norm":
            weight = named_arguments(node)["weight"]
            if isinstance(weight, Node) and weight.op == "get_attr":
                names[str(weight.target)] = None
    return list(names)
