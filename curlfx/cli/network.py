"""The MODEL argument and the options beside it, for commands that look at one network.

Commands import what they need when they run, so that help and usage errors come at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curlfx.errors import ModelError, UsageError

if TYPE_CHECKING:
    from curlfx.coupling import Coupling
    from curlfx.graph.traced import TracedModel

MODEL_HELP = (
    "torchvision:NAME, timm:NAME, curlfx:NAME, file.py:factory, package.module:factory, or a saved network's DIR"
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Weights = Annotated[str | None, typer.Option(help="a .safetensors or weights-only .pth file, or 'default' (published)")]
Shape = Annotated[str | None, typer.Option(metavar="C,H,W", help="shape of one image, like 3,224,224")]
Classes = Annotated[int | None, typer.Option(min=1, help="size of the head, for networks that can be built so")]
Frozen = Annotated[list[str] | None, typer.Option(metavar="NAME", help="module or parameter to leave alone, * allowed")]
MOST_SEED = 2**31 - 1
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of every random choice")]

EXAMPLE_BATCH = 2
MOST_DIGITS = 9
"""Of a size; more overflow what counts them."""


def open_network(
    model: str, *, weights: str | None = None, shape: str | None = None, classes: int | None = None
) -> TracedModel:
    """Load and trace the network that the arguments name; of a folder, load its saved graph, which runs no factory.

    Raises: ModelError, WeightsError, TraceError, SavedError; UsageError for a shape that is none.
    """
    if is_saved(model):
        return open_saved(Path(model), weights=weights, shape=shape, classes=classes)
    import torch

    from curlfx.graph.trace import trace
    from curlfx.run.config import PUBLISHED
    from curlfx.sources import forward_for, input_shape, load_model
    from curlfx.sources.fit import not_finite

    source = weights if weights is None or weights == PUBLISHED else Path(weights)
    network = load_model(model, num_classes=classes, weights=source)
    fault = not_finite(network)
    if fault is not None:
        raise ModelError(f"model {model}: {fault}; mend it, or give --weights")
    size = _parsed(shape) if shape is not None else input_shape(model)
    if size is None:
        raise ModelError(f"model {model}: the shape of its images is not on record; give --shape C,H,W")
    try:
        example = torch.randn(EXAMPLE_BATCH, *size, generator=torch.Generator().manual_seed(0))
    except RuntimeError as cause:  # no memory, or a number of values that overflows
        raise UsageError(f"--shape {','.join(map(str, size))}: no memory holds {EXAMPLE_BATCH} such images") from cause
    return trace(network, example, forward=forward_for(network))


def is_saved(model: str) -> bool:
    """Whether MODEL names the folder of a saved network, such as a run directory."""
    return Path(model).is_dir()


def open_saved(folder: Path, **others: object) -> TracedModel:
    """The saved slim network of a folder. Raises: SavedError; UsageError for options that only a factory takes."""
    from curlfx.run.saved import load

    given = next((name for name, value in others.items() if value is not None), None)
    if given is not None:
        raise UsageError(f"--{given}: {folder} is a saved network, which has its own; leave the option out")
    return load(folder, graph=True)


def open_coupling(traced: TracedModel, frozen: list[str] | None) -> Coupling:
    """Its coupling groups. Raises: KeepError for a name that matches nothing."""
    from curlfx.coupling import couple

    return couple(traced, frozen=tuple(frozen or ()))


def _parsed(shape: str) -> tuple[int, ...]:
    parts = [part.strip() for part in shape.split(",")]
    if len(parts) != 3 or not all(part.isdecimal() and len(part) <= MOST_DIGITS and int(part) > 0 for part in parts):
        raise UsageError(f"--shape {shape}: want three whole numbers C,H,W, like 3,224,224")
    return tuple(int(part) for part in parts)
