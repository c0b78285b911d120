"""What the module does in training mode, tried on tensors that have shapes only."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from curlfx.inplace.fault import Fault
from curlfx.inplace.locate import raised


def training_fault(model: nn.Module, inputs: tuple[Any, ...]) -> Fault | None:
    """Where ``forward`` in training mode fails; None where it runs. No value is computed and no buffer changed."""
    modes = [(module, module.training) for module in model.modules()]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with fake, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in held.items()}
            given = pytree.tree_map_only(Tensor, fake.from_tensor, inputs)
            torch.func.functional_call(model.train(), state, given)
    except Exception as error:  # noqa: BLE001 - forward raises what it likes
        return raised(model, error)
    finally:
        for module, mode in modes:
            module.training = mode
    return None
