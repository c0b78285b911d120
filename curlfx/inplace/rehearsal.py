"""The module's own code, run on tensors that have shapes only."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from curlfx.inplace.fault import Fault
from curlfx.inplace.locate import raised


def rehearse(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    training: bool,
    forward: Callable[..., Any] | None = None,
    watch: AbstractContextManager[Any] | None = None,
) -> Fault | None:
    """Where the model fails in a mode; None where it runs. No value is computed and no buffer changed.

    Args:
        inputs: Their shapes are what counts.
        forward: Run ``forward(model, *inputs)`` instead of the model's own.
        watch: Entered around the call.
    """
    modes = [(module, module.training) for module in model.modules()]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stage, logged = _Stage(model, forward), logging.root.manager.disable
    logging.disable(logging.ERROR)  # torch logs the traceback of what fails here; what matters is returned
    try:
        with fake, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: dict[str, Tensor] = {f"model.{name}": fake.from_tensor(tensor) for name, tensor in held.items()}
            given = pytree.tree_map_only(Tensor, fake.from_tensor, inputs)
            model.train(training)
            with watch or contextlib.nullcontext():
                torch.func.functional_call(stage, state, given)
    except Exception as error:  # noqa: BLE001 - forward raises what it likes
        return raised(model, error)
    finally:
        logging.disable(logged)
        for module, mode in modes:
            module.training = mode
    return None


class _Stage(nn.Module):
    """The model behind the function that is run on it."""

    def __init__(self, model: nn.Module, function: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs) if self.function is None else self.function(self.model, *inputs)
