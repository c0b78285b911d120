"""Nodes and megabytes of ONNX files: dense, slim, slim in float16, slim in 8-bit whole numbers.

Weights are random, and half of the channels of every group go: files are compared here, not accuracies. The errors of
slim and fp16 are against torch in float32 (onnxruntime's CPU computes with the rounded weights of fp16, in float32);
error and top-1 agreement of int8 are against the slim file, on the random images it was calibrated with.

python benchmarks/export_quality.py
python benchmarks/export_quality.py --models torchvision:resnet18,curlfx:resnet20 --images 64
"""

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from tables import fixed, markdown, percent, processor, publish, scientific
from trial import random_keep, randomise

from curlfx.coupling import couple
from curlfx.deploy import OnnxFile, check_onnx, export_onnx, parity, prepare, quantize
from curlfx.graph import TracedModel, trace
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from curlfx.sources import load_model

MODELS = (
    "curlfx:resnet20,torchvision:resnet18,torchvision:mobilenet_v3_small,torchvision:efficientnet_b0,"
    "torchvision:shufflenet_v2_x0_5,torchvision:convnext_tiny,torchvision:vit_b_16"
)
SIDES = {"curlfx:resnet20": 32, "torchvision:vit_b_16": 224}
SIDE = 64
BATCH = 8
FORMS = ("dense", "slim", "fp16", "int8")
HEADERS = [
    "model",
    *(f"{form} nodes" for form in FORMS),
    *(f"{form} MB" for form in FORMS),
    *("slim error", "fp16 error", "int8 error", "int8 top-1"),
]


def measure(spec: str, images: int, folder: Path) -> list[str]:
    """One row of the table."""
    module = randomise(load_model(spec).eval())
    side = SIDES.get(spec, SIDE)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(images, 3, side, side, generator=generator).split(BATCH)
    traced = trace(module, batches[0][:2])
    coupling = couple(traced)
    slim, _ = run(traced, [Slim(coupling, random_keep(coupling.groups))])
    ready, half = prepare(slim), folder / "fp16.onnx"
    files = {
        "dense": written(traced, folder / "dense.onnx"),
        "slim": written(slim, folder / "slim.onnx"),
        "fp16": export_onnx(ready.module, ready.example_inputs, half, precision="fp16"),
    }
    nodes = {name: sum(file.operators.values()) for name, file in files.items()}
    sizes = {name: file.size_bytes for name, file in files.items()}
    report = quantize(files["slim"].path, batches, folder / "int8.onnx")
    nodes["int8"], sizes["int8"] = sum(check_onnx(report.path).operators.values()), report.size_bytes
    errors = [parity(slim.module, files[form].path, slim.example_inputs).worst for form in ("slim", "fp16")]
    return [
        spec.partition(":")[2],
        *(str(nodes[form]) for form in FORMS),
        *(fixed(sizes[form] / 1e6) for form in FORMS),
        *map(scientific, [*errors, report.relative_error]),
        percent(report.top1_agreement),
    ]


def written(network: TracedModel, path: Path) -> OnnxFile:
    """A network as ``curlfx export`` writes it."""
    ready = prepare(network)
    return export_onnx(ready.module, ready.example_inputs, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help="specifications of networks, separated by commas")
    parser.add_argument("--images", type=int, default=32, help="random images to calibrate with (default 32)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    options = parser.parse_args(arguments)
    if options.images < BATCH:
        sys.exit(f"--images {options.images}: want {BATCH} or more")
    torch.set_num_threads(1)
    rows = []
    for spec in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(spec, options.images, Path(folder)))
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    text = (
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, "
        f"{processor()}.\n\n{markdown(HEADERS, rows)}\n"
    )
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
