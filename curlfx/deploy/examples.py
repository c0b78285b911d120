"""Example inputs as JSON: their shapes and types, not their values."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from curlfx.errors import SavedError


def describe_inputs(value: Any) -> JsonValue:
    """Inputs as JSON, like ``{"tuple": [{"tensor": [2, 3, 8, 8], "dtype": "float32"}]}``.

    Raises: SavedError for anything but tensors, numbers, text, None, and tuples, lists and dictionaries of these.
    """
    match value:
        case Tensor():
            return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        case tuple() if type(value) is tuple:
            return {"tuple": [describe_inputs(item) for item in value]}
        case list():
            return {"list": [describe_inputs(item) for item in value]}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: describe_inputs(item) for key, item in value.items()}}
        case None | bool() | int() | float() | str():
            return value
    raise SavedError(
        f"an input is a {type(value).__name__}: want tensors, numbers, and tuples, lists and dicts of them"
    )


def make_inputs(description: Any) -> Any:
    """Inputs of the described shapes and types: random floats, the same every time, and zeros otherwise.

    Raises: SavedError for what is no description.
    """
    generator = torch.Generator().manual_seed(0)

    def made(value: Any) -> Any:
        match value:
            case {"tensor": list(shape), "dtype": str(name)}:
                dtype = getattr(torch, name, None)
                if not isinstance(dtype, torch.dtype) or not all(type(size) is int and size >= 0 for size in shape):
                    raise SavedError(f"inputs: {value!r} is no shape and type of a tensor")
                if dtype.is_floating_point:
                    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
                return torch.zeros(shape, dtype=dtype)
            case {"tuple": list(items)}:
                return tuple(map(made, items))
            case {"list": list(items)}:
                return list(map(made, items))
            case {"dict": dict(items)}:
                return {key: made(item) for key, item in items.items()}
            case None | bool() | int() | float() | str():
                return value
        raise SavedError(f"inputs: {value!r} describes none")

    return made(description)
