"""Another function in place of a model's ``forward``, for as long as a trace takes."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from curlfx.errors import TraceError

Forward = Callable[..., Any]
"""``forward(model, *inputs)``: what an unbound ``forward`` method is."""

_NAME = "_curlfx_forward"


@contextlib.contextmanager
def replaced_forward(model: nn.Module, forward: Forward) -> Iterator[Collection[nn.Module]]:
    """Let ``model(*inputs)`` be ``forward(model, *inputs)`` for a while; collects the submodules that are called.

    While ``forward`` runs, the model has its own again, so that ``forward`` may call the model itself.
    Raises: TraceError when ``forward`` cannot be called.
    """
    if not callable(forward):
        raise TraceError(f"forward is a {type(forward).__name__}, want a function of the model and its inputs")
    called: dict[nn.Module, None] = {}
    children = [module for module in model.modules() if module is not model]
    hooks = [child.register_forward_pre_hook(functools.partial(_note, called, child)) for child in children]
    own = model.__dict__.get("forward")  # some people replace the method of one object
    model.__dict__["forward"] = _bound(model, forward, own)
    try:
        yield called.keys()
    finally:
        _restore(model, own)
        for hook in hooks:
            hook.remove()


def check_reads(model: nn.Module, names: Collection[str], forward: Forward) -> None:
    """Raises: TraceError when the model has parameters and none is among the ``names`` that the graph reads."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if parameters and not any(name in parameters for name in names):
        raise TraceError(
            f"forward={name_of(forward)} reads no parameter of the model; want a function that is given the model "
            "and calls its submodules"
        )


def described_forward(model: nn.Module) -> str:
    """What messages call that which ``model(*inputs)`` runs now."""
    name = getattr(model.__dict__.get("forward"), _NAME, None)
    return "the model's own forward" if name is None else f"forward={name}"


def name_of(forward: Forward) -> str:
    """What people call a function."""
    while isinstance(forward, functools.partial):
        forward = forward.func
    return str(getattr(forward, "__qualname__", type(forward).__name__))


def _bound(model: nn.Module, forward: Forward, own: Forward | None) -> Forward:
    run = _recorded(forward)

    def call(*inputs: Any, **options: Any) -> Any:  # a function: `torch.export` reads its code
        _restore(model, own)
        try:
            return run(model, *inputs, **options)
        finally:
            model.__dict__["forward"] = call

    setattr(call, _NAME, name_of(forward))
    with contextlib.suppress(TypeError, ValueError):  # a callable without a signature
        signature = inspect.signature(forward)
        rest = list(signature.parameters.values())[1:]
        call.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    return call


def _recorded(forward: Forward) -> Forward:
    """The same function with the name that makes `torch.export` record its lines."""
    if isinstance(forward, functools.partial):
        return functools.partial(_recorded(forward.func), *forward.args, **forward.keywords)
    if not isinstance(forward, FunctionType):
        return forward
    code = forward.__code__.replace(co_name="forward")
    copied = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied


def _restore(model: nn.Module, own: Forward | None) -> None:
    if own is None:
        model.__dict__.pop("forward", None)
    else:
        model.__dict__["forward"] = own


def _note(called: dict[nn.Module, None], module: nn.Module, *_: Tensor) -> None:
    called[module] = None
