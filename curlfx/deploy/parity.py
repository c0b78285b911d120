"""Whether onnxruntime computes what torch computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curlfx.deploy.session import open_session
from curlfx.errors import ConfigError, ModelError, VerificationError, first_line

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Deviation:
    """How far one output is off at one batch size.

    Attributes:
        output: Name in the ONNX file.
        batch: Images at once.
        relative: ``max|torch - onnx| / max|torch|``; infinite for a wrong shape, NaN or infinity.
    """

    output: str
    batch: int
    relative: float


@dataclass(frozen=True)
class ParityReport:
    """All deviations of one file.

    Attributes:
        path: The file.
        tolerance: Largest relative error accepted (float32).
        deviations: One per batch size and output.
    """

    path: Path
    tolerance: float
    deviations: tuple[Deviation, ...]

    @property
    def worst(self) -> float:
        """Largest relative error."""
        return max(one.relative for one in self.deviations)

    @property
    def passed(self) -> bool:
        """Whether every output agrees at every batch size."""
        return self.worst <= self.tolerance

    def require(self) -> None:
        """Insist. Raises: VerificationError naming the worst output, its batch size and error."""
        if not self.passed:
            one = max(self.deviations, key=lambda one: one.relative)
            raise VerificationError(
                f"{self.path}: output {one.output!r} at batch {one.batch} is off by {one.relative:.3g} of its largest "
                f"value; want at most {self.tolerance:g}"
            )


def parity(
    module: nn.Module,
    path: str | Path,
    inputs: Sequence[Any],
    batch_sizes: Sequence[int] = (1, 3),
    *,
    tolerance: float = TOLERANCE,
    threads: int = 0,
) -> ParityReport:
    """Compare ``module`` in eval mode with the ONNX file in onnxruntime on the CPU, output by output.

    A file of fixed batch size is compared at that size alone.

    Args:
        inputs: Positional inputs of the network; their rows are taken in turn to fill a batch.
        batch_sizes: Sizes to compare at.
        threads: Of onnxruntime; 0 is all cores.

    Raises: ModelError for a file that cannot be opened or that has other inputs or outputs than the network;
        ConfigError for a batch size below 1.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch sizes = {list(batch_sizes)}: want at least one, each 1 or more")
    path = Path(path)
    session = open_session(path, threads=threads)
    tensors = [leaf for leaf in pytree.tree_leaves(tuple(inputs)) if isinstance(leaf, Tensor)]
    feeds = session.get_inputs()
    if len(feeds) != len(tensors):
        raise ModelError(f"{path}: has {len(feeds)} inputs, the network {len(tensors)}; want the file of this network")
    fixed = {feed.shape[0] for feed in feeds if feed.shape and isinstance(feed.shape[0], int)}
    found = [
        deviation
        for batch in (sorted(fixed) or dict.fromkeys(batch_sizes))
        for deviation in _compare(module, session, path, tuple(inputs), batch)
    ]
    return ParityReport(path, tolerance, tuple(found))


def _compare(module: nn.Module, session: Any, path: Path, inputs: tuple[Any, ...], batch: int) -> list[Deviation]:
    drawn = pytree.tree_map_only(Tensor, lambda one: _rows(one, batch), inputs)
    wanted = [one.double().numpy() for one in _run_torch(module, drawn)]
    names = [output.name for output in session.get_outputs()]
    if len(names) != len(wanted):
        raise ModelError(f"{path}: has {len(names)} outputs, the network {len(wanted)}; want the file of this network")
    tensors = [leaf for leaf in pytree.tree_leaves(drawn) if isinstance(leaf, Tensor)]
    feeds = {feed.name: one.numpy() for feed, one in zip(session.get_inputs(), tensors, strict=True)}
    try:
        given = session.run(None, feeds)
    except Exception as error:  # its exceptions derive from Exception alone
        raise ModelError(f"{path}: onnxruntime fails at batch {batch}: {first_line(error)}") from error
    return [
        Deviation(name, batch, relative_error(one, np.asarray(other)))
        for name, one, other in zip(names, wanted, given, strict=True)
    ]


def _rows(tensor: Tensor, batch: int) -> Tensor:
    return tensor[torch.arange(batch) % len(tensor)] if tensor.dim() else tensor


def _run_torch(module: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(*inputs)
    finally:
        module.train(was_training)
    return [leaf.cpu() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def relative_error(wanted: np.ndarray[Any, Any], given: np.ndarray[Any, Any]) -> float:
    """``max|wanted - given| / max|wanted|``, in float64; infinite for other shapes, NaN or infinity.

    Where everything wanted is 0 it is ``max|given|`` itself.
    """
    if wanted.shape != given.shape:
        return math.inf
    if wanted.size == 0:
        return 0.0
    wanted, given = wanted.astype(np.float64), given.astype(np.float64)
    if not (np.isfinite(wanted).all() and np.isfinite(given).all()):
        return math.inf
    scale = float(np.abs(wanted).max())
    return float(np.abs(wanted - given).max()) / (scale if scale > 0 else 1.0)
