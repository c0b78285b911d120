"""The slim network in 8-bit whole numbers: written, and judged on the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curlfx.deploy import quantize
from curlfx.deploy.session import open_session
from curlfx.recovery import evaluate
from curlfx.run.job import EVALUATION_BATCH, Job
from curlfx.run.subject import proxy_batches

INT8 = "slim.int8.onnx"


def write_int8(job: Job, slim: Path) -> dict[str, Any]:
    """Quantise the slim ONNX file with the run's own training images, and measure the accuracy of the result."""
    config, runtime = job.config, OnnxNetwork(slim)
    images = torch.cat(proxy_batches(job.subject.data, config.proxy_images, config.seed)).cpu()
    size = runtime.batch or EVALUATION_BATCH
    missing = 0 if runtime.batch is None else -len(images) % size
    batches = torch.cat([images, images[:1].expand(missing, *images.shape[1:])]).split(size)
    report = quantize(slim, batches, job.file(INT8), progress=job.progress)
    loader = job.subject.data.loader("test", EVALUATION_BATCH)
    accuracy = evaluate(OnnxNetwork(job.file(INT8)), loader, device="cpu", stage="int8", progress=job.progress)
    job.say(f"accuracy of the slim network in 8 bits: {accuracy:.4f}")
    return {
        "size_bytes": report.size_bytes,
        "images": report.images,
        "top1_agreement": report.top1_agreement,
        "relative_error": report.relative_error,
        "accuracy": accuracy,
    }


class OnnxNetwork(nn.Module):
    """An ONNX file of one input on onnxruntime's CPU, as a module.

    Attributes:
        batch: The batch size that the file takes; None where it takes any.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = open_session(path)
        (value,) = self._session.get_inputs()
        self._name = value.name
        self.batch: int | None = value.shape[0] if isinstance(value.shape[0], int) else None

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: images ``(N, C, H, W)`` of any ``N``; result ``(N, …)``, the first output."""
        size = self.batch or len(images)
        parts = []
        for part in images.split(size):
            full = torch.cat([part, part[:1].expand(size - len(part), *part.shape[1:])])
            found = self._session.run(None, {self._name: full.numpy()})[0]
            parts.append(torch.from_numpy(found)[: len(part)])
        return torch.cat(parts)
