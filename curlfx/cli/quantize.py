"""The command ``quantize``: an ONNX file in 8-bit whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curlfx.cli.document import print_json
from curlfx.cli.job import AsJson
from curlfx.cli.network import Seed
from curlfx.cli.tables import show_table
from curlfx.cli.voice import progress_shown
from curlfx.errors import DataError, ModelError, UsageError
from curlfx.files import require_writable
from curlfx.report.text import count

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_AXES = 4  # batch, channels, height, width


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="float32 network, as 'curlfx export' writes it")],
    data: Annotated[str, typer.Option(help="images to calibrate with: training images of DATA")],
    images: Annotated[int, typer.Option(min=1, help="how many of them")] = 256,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file to write (default: MODEL.int8.onnx beside it)")
    ] = None,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="Weights in 7 bits, for CPUs without VNNI.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write an ONNX network in 8-bit whole numbers.

    It is reported how far it agrees with the float one. Weights have a scale per channel, activations the range that
    the images give them.

    For example:

        curlfx quantize slim.onnx --data imagefolder:DIR --images 512
    """
    from curlfx.deploy import check_onnx
    from curlfx.deploy import quantize as write_quantised
    from curlfx.run.directory import STATE
    from curlfx.run.subject import proxy_batches
    from curlfx.sources import load_data

    batch, shape = image_axes(model, check_onnx(model).inputs)
    target = model.with_suffix(".int8.onnx") if out is None else out
    if out is None and model.with_name(STATE).exists():
        raise UsageError(
            f"quantize {model}: the files of the run in {model.parent} are on its record; name another one with --out"
        )
    require_writable(target)
    source = load_data(data, shape=shape)
    if batch is None:
        batches: Sequence[Tensor] = proxy_batches(source, images, seed)
    else:
        found = min(images, source.size("train"))
        if found < batch:
            raise DataError(f"quantize {model}: takes batches of {batch}, the data gives {found}; want more images")
        joined = source.proxy(found - found % batch, seed)
        batches = joined.split(batch)
    with progress_shown() as (progress, _):
        report = write_quantised(model, batches, target, reduce_range=reduce_range, progress=progress)
    if as_json:
        print_json({**asdict(report), "path": str(target)})
        return
    agreement = "" if report.top1_agreement is None else f"{report.top1_agreement:.1%}"
    size = f"{count(report.float_bytes)}B", f"{count(report.size_bytes)}B"
    rows = [(str(report.images), agreement, f"{report.relative_error:.2e}", *size)]
    show_table(("images", "top-1 agreement", "relative error", "float size", "int8 size"), rows, text=())
    print(target)


def image_axes(path: Path, inputs: dict[str, tuple[int | str, ...]]) -> tuple[int | None, tuple[int, int, int]]:
    """Batch size (None for any) and shape ``(C, H, W)`` of the images that a network takes. Raises: ModelError."""
    if len(inputs) != 1:
        raise ModelError(f"{path}: has {len(inputs)} inputs; want one, of images (curlfx.deploy.quantize takes any)")
    ((name, axes),) = inputs.items()
    if len(axes) != IMAGE_AXES:
        raise ModelError(f"{path}: its input {name!r} has {len(axes)} axes; want images (batch, C, H, W)")
    batch, *shape = axes
    sizes = [size for size in shape if isinstance(size, int) and size > 0]
    if len(sizes) != IMAGE_AXES - 1:
        raise ModelError(f"{path}: its input {name!r} takes images of any size {axes}; want a fixed C, H, W")
    channels, height, width = sizes
    return batch if isinstance(batch, int) else None, (channels, height, width)
