"""Random inputs for an onnxruntime session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curlfx.errors import ConfigError, ModelError

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def random_feeds(
    path: Path, session: Any, *, batch_size: int, shapes: Mapping[str, Sequence[int]], seed: int
) -> dict[str, Any]:
    """Random inputs of the session, by name: normal for floating point, zeros for integers (they may be indices).

    Args:
        shapes: Full shape by input name, for inputs whose shape the file leaves open in more than the batch.

    Raises: ModelError for inputs that cannot be made; ConfigError for shapes or a batch size that do not fit.
    """
    generator = np.random.default_rng(seed)
    known = {value.name for value in session.get_inputs()}
    for name in shapes:
        if name not in known:
            raise ConfigError(f"{path}: has no input {name!r}; its inputs are {', '.join(sorted(known))}")
    feeds = {}
    for value in session.get_inputs():
        shape = _shape(path, value.name, value.shape, batch_size, shapes.get(value.name))
        if value.type not in TYPES:
            raise ModelError(f"{path}: input {value.name!r} is a {value.type}; want one of {', '.join(TYPES)}")
        kind = np.dtype(TYPES[value.type])
        drawn = generator.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
        feeds[value.name] = drawn.astype(kind)
    return feeds


def _shape(
    path: Path, name: str, declared: Sequence[int | str | None], batch: int, wanted: Sequence[int] | None
) -> tuple[int, ...]:
    if wanted is not None:
        agrees = len(wanted) == len(declared) and all(
            not isinstance(axis, int) or axis == size for axis, size in zip(declared, wanted, strict=True)
        )
        if not agrees:
            raise ConfigError(f"{path}: input {name!r} is {list(declared)}; shape {list(wanted)} does not fit it")
        return tuple(wanted)
    if declared and isinstance(declared[0], int) and declared[0] != batch:
        raise ConfigError(f"{path}: input {name!r} takes batch {declared[0]} only; want batch_size={declared[0]}")
    rest = declared[1:]
    if not all(isinstance(axis, int) for axis in rest):
        raise ModelError(f"{path}: input {name!r} leaves its shape open: {list(declared)}; give it with shapes")
    return tuple(int(axis) for axis in ([batch, *rest] if declared else []) if axis is not None)
