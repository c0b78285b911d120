"""Physical slimming while a network is trained: the network shrinks in place, and the optimiser's memory with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curlfx.coupling import Coupling
from curlfx.errors import InvariantError, UsageError
from curlfx.gradual.mask import labelled_parameters, surviving
from curlfx.graph.traced import TracedModel
from curlfx.labels.compact import Bools, Ints, compact


def shrink(
    traced: TracedModel,
    slim: TracedModel,
    coupling: Coupling,
    keep: Mapping[str, Sequence[int]],
    optimizers: Sequence[Optimizer],
) -> None:
    """Make ``traced`` what ``slim`` is; its module stays the same object, its narrower parameters are new ones.

    In every optimiser the new parameters stand where the old ones stood, and each of their state tensors (momentum,
    moments) is cut as the parameter is.

    Args:
        traced: The network.
        slim: What ``keep`` leaves of it, with its very weights where they are not cut.
        coupling: Channels of ``traced``.
        keep: Channels to keep.
        optimizers: Those that train it.

    Raises: UsageError for an optimiser that remembers something that cannot be cut, before anything is changed.
    """
    old = labelled_parameters(traced, coupling)
    for optimizer in optimizers:
        _check_state(optimizer, [parameter for parameter, _ in old])
    names = {id(traced.parameter(name)): name for name in _read(traced)}
    cells = coupling.cells.alive(coupling.alive(keep))
    moved: dict[nn.Parameter, tuple[nn.Parameter, tuple[Ints, ...]]] = {}
    for parameter, arrays in old:
        narrow = slim.parameter(names[id(parameter)])
        if narrow is not parameter and isinstance(narrow, nn.Parameter):
            moved[parameter] = narrow, arrays
    for optimizer in optimizers:
        _move(optimizer, moved, cells)
    traced.module.become(slim.module)


def widened(state: Tensor, dense: Tensor, arrays: Sequence[Ints], cells: Bools) -> Tensor:
    """A tensor of a slim network in its dense shape; elements of what is gone are those of ``dense``.

    Raises: InvariantError when what stays has another number of elements.
    """
    mask = torch.from_numpy(surviving(arrays, cells)).expand(dense.shape)
    if int(mask.sum()) != state.numel():
        found, whole = tuple(state.shape), tuple(dense.shape)
        raise InvariantError(f"a tensor of shape {found} does not fit what is left of {whole}")
    result = dense.detach().cpu().clone()
    result[mask] = state.detach().cpu().flatten()
    return result.to(state.device)


def _read(traced: TracedModel) -> list[str]:
    return [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]


def _check_state(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise UsageError(
                    f"{type(optimizer).__name__} keeps '{key}' of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}, which cannot be cut along; want physical=False, or SGD, Adam, AdamW"
                )


def _move(
    optimizer: Optimizer, moved: Mapping[nn.Parameter, tuple[nn.Parameter, tuple[Ints, ...]]], cells: Bools
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [moved[each][0] if each in moved else each for each in group["params"]]
    for parameter, (narrow, arrays) in moved.items():
        state = optimizer.state.pop(parameter, None)
        if state is not None:
            optimizer.state[narrow] = {
                key: compact(value, arrays, cells)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in state.items()
            }
