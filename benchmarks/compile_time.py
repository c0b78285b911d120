"""Seconds to trace, couple and slim, one thread, medians of several runs; and milliseconds to price a keep set.

python benchmarks/compile_time.py
python benchmarks/compile_time.py --models resnet50,vit_b_16 --repeat 9
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tables import fixed, markdown, processor, publish
from trial import random_keep
from zoo import Entry, torchvision_models

from curlfx.cost import CostModel
from curlfx.coupling import couple
from curlfx.graph import trace
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim

Result = TypeVar("Result")

MODELS = (
    "resnet18,resnet34,resnet50,resnet101,resnet152,resnext50_32x4d,densenet121,densenet201,mobilenet_v3_large,"
    "efficientnet_b0,efficientnet_b7,shufflenet_v2_x1_0,googlenet,regnet_y_400mf,convnext_tiny,swin_t,vit_b_16,r3d_18"
)
HEADERS = ["model", "nodes", "groups", "channels", "trace s", "couple s", "slim s", "sum s", "price ms"]


def seconds(action: Callable[[], Result], repeat: int) -> tuple[float, Result]:
    """Median wall-clock seconds of `repeat` calls, and the last result."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def measure(entry: Entry, repeat: int) -> list[str]:
    """One row of the table: float32, half of the channels of every group removed."""
    torch.manual_seed(0)
    module = entry.build().eval()
    inputs = entry.inputs(2, dtype=torch.float32)
    trace_s, traced = seconds(lambda: trace(module, inputs), max(1, repeat // 3))
    couple_s, coupling = seconds(lambda: couple(traced), repeat)
    keep = random_keep(coupling.groups)
    slim_s, _ = seconds(lambda: run(traced, [Slim(coupling, keep)]), max(1, repeat // 3))
    model, alive = CostModel(traced, coupling), coupling.alive(keep)
    price_s, _ = seconds(lambda: model.evaluate(alive), repeat)
    numbers = [str(len(traced.graph.nodes)), str(len(coupling.groups)), str(coupling.total)]
    times = [fixed(trace_s), fixed(couple_s, 3), fixed(slim_s), fixed(trace_s + couple_s + slim_s)]
    return [entry.name, *numbers, *times, fixed(1000 * price_s, 2)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help="names of torchvision models, separated by commas")
    parser.add_argument("--repeat", type=int, default=5, help="runs of couple (trace and slim: a third of them)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    zoo = torchvision_models()
    names = options.models.split(",")
    if unknown := [name for name in names if name not in zoo]:
        sys.exit(f"--models {','.join(unknown)}: not in torchvision")
    rows = []
    for name in names:
        rows.append(measure(zoo[name], options.repeat))
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    text = f"torch {torch.__version__}, Python {platform.python_version()}, one thread, {processor()}.\n\n"
    text += markdown(HEADERS, rows) + "\n"
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
