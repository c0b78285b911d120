"""The parts ``export`` and ``bench``: the files, and how they are measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from curlfx.run.config.section import Count, Natural, Positive, Section


class ExportConfig(Section):
    """The ONNX files.

    Attributes:
        opset: Operator set version; none takes the default of `curlfx.deploy.export_onnx`.
        dynamic_batch: Take any batch size (else that of the example only).
        single_file: Weights inside the file, as far as the 2 GB of one file reach.
        int8: Also write ``slim.int8.onnx``, quantised with the proxy images, and measure it beside the others.
    """

    opset: Annotated[int, Field(ge=18, le=23)] | None = None
    dynamic_batch: bool = True
    single_file: bool = True
    int8: bool = False


class BenchConfig(Section):
    """The measurement on onnxruntime, dense and slim interleaved.

    Attributes: as in `curlfx.deploy.BenchSettings`.
    """

    batch_size: Count = 1
    threads: Count = 1
    provider: str = "cpu"
    rounds: Annotated[int, Field(ge=2)] = 40
    runs: Count = 5
    warmup: Natural = 10
    max_seconds: Positive | None = 120.0
