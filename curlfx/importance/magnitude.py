"""Magnitude: how large the weights of a coupled channel are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from curlfx.cost.macs import tensors_read
from curlfx.coupling import GroupId
from curlfx.errors import WeightsError
from curlfx.importance.request import Request
from curlfx.importance.scores import Values

Labels = npt.NDArray[np.int64]


def magnitude(request: Request) -> dict[GroupId, Values]:
    """L2 norm of everything trainable that a channel takes with it, divided by the mean of its group.

    An element counts for every channel it belongs to: rows of the layer that makes the channel, columns of the layers
    that read it, scales of normalisations, position tables. Biases and shifts do not count, as in the field. Division
    by the group's mean lets groups of any fan-in be ranked together.

    Shapes: scores ``(width,)`` per group.
    Raises: WeightsError naming a parameter with NaN or infinite values.
    Source: group L2 of DepGraph (arXiv:2301.12900), section 3.3; Torch-Pruning's ``GroupMagnitudeImportance`` with its
        defaults ``p=2, normalizer="mean", bias=False``.
    """
    coupling = request.coupling
    squares = np.zeros(coupling.total + 1)
    biases = _biases(request.traced.graph)
    for name, tensor in tensors_read(request.traced).items():
        labels = coupling.channels_in(coupling.parameter_labels(name))
        if labels and isinstance(tensor, nn.Parameter) and name not in biases:
            _add_squares(squares, name, tensor, labels)
    norms = np.sqrt(squares)
    return {group.id: _normalised(norms[group.channels]) for group in coupling.groups}


def _normalised(norms: Values) -> Values:
    mean = norms.mean()
    return norms / mean if mean > 0 else norms


def _biases(graph: fx.Graph) -> set[str]:
    """Names of the parameters that are read as a ``bias`` and as nothing else."""
    return {
        str(node.target)
        for node in graph.nodes
        if node.op == "get_attr" and node.users and all(_is_bias(node, user) for user in node.users)
    }


def _is_bias(node: fx.Node, user: fx.Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    named = [*zip((argument.name for argument in schema.arguments), user.args, strict=False), *user.kwargs.items()]
    roles = {name for name, value in named if value is node}
    return roles == {"bias"}


def _add_squares(squares: Values, name: str, tensor: Tensor, labels: Sequence[Labels]) -> None:
    """Add the squared elements of one parameter to the channels that they belong to, once each.

    Shapes: squares ``(N + 1,)``; each label array broadcasts to the parameter.
    """
    weights = tensor.detach()
    arrays = [torch.from_numpy(array).to(weights.device) for array in labels]
    for position, array in enumerate(arrays):
        counted = weights
        for other in arrays[:position]:
            if bool(torch.isin(array, other).any()):  # one array on two axes: the diagonal belongs to a channel once
                counted = counted.masked_fill((array == other) & (array > 0), 0.0)
        constant = [axis for axis, size in enumerate(array.shape) if size == 1]
        norms = torch.linalg.vector_norm(counted, dim=constant, dtype=torch.float64) if constant else counted.double()
        summed = norms.square().reshape(-1).cpu().numpy()
        squares += np.bincount(array.reshape(-1).cpu().numpy(), weights=summed, minlength=squares.size)
    if not np.isfinite(squares).all():
        raise WeightsError(f"parameter '{name}' has NaN or infinite values; magnitude cannot rank its channels")
