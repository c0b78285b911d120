"""Seconds and memory of coupling against the size of the graph: is it linear in the number of nodes?

Networks of torchvision from ResNet-18 to ViT-H/14, and synthetic networks of 500 to 4,000 nodes that hold residuals,
depthwise convolutions, splits, concatenations and gates. By least squares of the logarithms it fits
``seconds = c * nodes ** a`` to the synthetic networks, all of the same widths, and
``seconds = c * nodes ** a * (channels / nodes) ** b`` to all: networks of more nodes are often wider, too. Every
network is measured in a process of its own, on one thread, with real float32 weights.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only resnet18,synthetic-500 --repeat 3
"""

import argparse
import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tables import fixed, markdown, processor
from torch import Tensor, nn
from zoo import torchvision_models

Row = dict[str, Any]

TORCHVISION = (
    *("resnet18", "resnet50", "resnet101", "resnet152", "densenet121", "densenet201", "mobilenet_v3_large"),
    *("efficientnet_b7", "convnext_large", "swin_b", "vit_b_16", "vit_l_16", "vit_h_14"),
)
SYNTHETIC = (500, 1000, 2000, 4000)
LARGEST_EXPONENT = 1.1
LARGEST_MEMORY = 2**30
HEADERS = ["network", "nodes", "groups", "channels", "parameters MB", "trace s", "couple s", "µs per node"]
HEADERS += ["trace + couple MiB", "couple MiB", "couple, Python and numpy MiB"]


class Block(nn.Module):
    """Inverted residual with a gate, whose inner channels are split, halved again and concatenated: about 40 nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.expand, self.norm1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.spread, self.norm2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner)
        self.down, self.up = nn.Linear(inner, width // 2), nn.Linear(width // 2, inner)
        self.right = nn.Conv2d(width, width, 1)
        self.project, self.norm3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x ``(N, width, H, W)``, and so the output."""
        y = torch.relu(self.norm1(self.expand(x)))
        y = torch.relu(self.norm2(self.spread(y)))
        y = y * torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3))))))[:, :, None, None]
        left, right = y.chunk(2, 1)
        y = torch.cat([left, self.right(right)], 1)
        return torch.relu(x + self.norm3(self.project(y)))


class Synthetic(nn.Module):
    """A stem, as many blocks as asked for, and a classifier."""

    def __init__(self, blocks: int, width: int = 32) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, width, 3), nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x ``(N, 3, H, W)``, output ``(N, 10)``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Subject:
    """A network and the shape of its images."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


def subjects() -> Mapping[str, Subject]:
    """Networks by name."""
    zoo = torchvision_models()
    found = {name: Subject(zoo[name].build, zoo[name].shape) for name in TORCHVISION}
    for nodes in SYNTHETIC:
        found[f"synthetic-{nodes}"] = Subject(functools.partial(_synthetic, nodes), (3, 16, 16))
    return found


def _synthetic(nodes: int) -> nn.Module:
    """The synthetic network whose graph comes closest to this number of nodes."""
    from curlfx.graph import trace

    image = torch.zeros(2, 3, 16, 16)
    one, two = (len(trace(Synthetic(blocks), (image,)).graph.nodes) for blocks in (1, 2))
    return Synthetic(1 + round((nodes - one) / (two - one)))


def measure(name: str, repeat: int) -> Row:
    """Times and memory of one network."""
    from curlfx.coupling import couple
    from curlfx.graph import trace

    torch.manual_seed(0)
    torch.set_num_threads(1)
    couple(trace(nn.Conv2d(3, 4, 1), (torch.zeros(2, 3, 4, 4),)))  # imports of the first call
    subject = subjects()[name]
    module = subject.build().eval()
    image = torch.zeros(2, *subject.shape)
    gc.collect()
    with_trace = Peak()
    start = time.process_time()
    traced = trace(module, (image,))
    trace_s = time.process_time() - start
    coupling = couple(traced)
    both = with_trace.above()
    row = {
        "name": name,
        "nodes": len(traced.graph.nodes),
        "groups": len(coupling.groups),
        "channels": coupling.total,
        "megabytes": sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6,
        "trace_s": trace_s,
        "both_bytes": both,
    }
    del coupling
    seconds = []
    for _ in range(repeat):
        gc.collect()
        start = time.process_time()
        couple(traced)
        seconds.append(time.process_time() - start)
    gc.collect()
    alone = Peak()
    couple(traced)
    row |= {"couple_s": seconds, "couple_bytes": alone.above()}
    gc.collect()
    tracemalloc.start()
    couple(traced)
    row["python_bytes"] = tracemalloc.get_traced_memory()[1]
    return row


class Peak:
    """Resident memory from now on: how far its highest value lies above the present one (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
        self._before = _status("VmRSS")

    def above(self) -> int:
        """Bytes between the high-water mark and what was resident at the start."""
        return max(0, _status("VmHWM") - self._before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


@dataclass(frozen=True)
class Fit:
    """``seconds = factor * x1 ** exponents[0] * x2 ** exponents[1] ...``.

    Attributes:
        factor: Seconds.
        exponents: Slopes of the logarithms.
        halves: Half of the 95 % confidence interval of each.
        points: Number of networks.
    """

    factor: float
    exponents: tuple[float, ...]
    halves: tuple[float, ...]
    points: int

    def __str__(self) -> str:
        terms = [f"{a:.2f} ± {half:.2f}" for a, half in zip(self.exponents, self.halves, strict=True)]
        return f"{' and '.join(terms)} (95 %, {self.points} networks)"


def fit(seconds: Sequence[float], *variables: Sequence[float]) -> Fit:
    """Least squares of the logarithms; more points than unknowns."""
    x = np.column_stack([np.ones(len(seconds)), *(np.log(variable) for variable in variables)])
    y = np.log(seconds)
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    freedom = len(y) - x.shape[1]
    variance = float(((y - x @ slopes) ** 2).sum()) / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x)))
    halves = stats.t.ppf(0.975, freedom) * errors
    return Fit(float(np.exp(slopes[0])), tuple(map(float, slopes[1:])), tuple(map(float, halves[1:])), len(y))


SYNTHETIC_FIT = "nodes, synthetic networks of one width"
TORCHVISION_FIT = "nodes, networks of torchvision, whose widths differ"
JOINT_FIT = "nodes and channels per node, all networks"


def fits(rows: Sequence[Row]) -> dict[str, Fit]:
    """What there are networks enough for."""
    synthetic = [row for row in rows if row["name"].startswith("synthetic")]
    found = {}
    if len(synthetic) > 2:
        found[SYNTHETIC_FIT] = fit([median(row) for row in synthetic], [row["nodes"] for row in synthetic])
    others = [row for row in rows if row not in synthetic]
    if len(others) > 2:
        found[TORCHVISION_FIT] = fit([median(row) for row in others], [row["nodes"] for row in others])
    if len(rows) > 3:
        nodes = [row["nodes"] for row in rows]
        found[JOINT_FIT] = fit([median(row) for row in rows], nodes, [row["channels"] / row["nodes"] for row in rows])
    return found


def median(row: Row) -> float:
    """Seconds of one call of couple."""
    return statistics.median(row["couple_s"])


def table(rows: Sequence[Row]) -> str:
    """One row per network."""
    body = []
    for row in sorted(rows, key=lambda row: row["nodes"]):
        seconds = median(row)
        body.append(
            [
                *(row["name"], str(row["nodes"]), str(row["groups"]), str(row["channels"])),
                *(fixed(row["megabytes"], 0), fixed(row["trace_s"])),
                f"{fixed(seconds, 3)} ({fixed(min(row['couple_s']), 3)}–{fixed(max(row['couple_s']), 3)})",
                fixed(1e6 * seconds / row["nodes"], 0),
                *(fixed(row[f"{what}_bytes"] / 2**20, 0) for what in ("both", "couple", "python")),
            ]
        )
    return markdown(HEADERS, body)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Seconds over nodes, both logarithmic, with the fit of the synthetic networks; areas are channels per node."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "curlfx", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for kind, marker in (("torchvision", "o"), ("synthetic", "s")):
        some = [row for row in rows if row["name"].startswith("synthetic") == (kind == "synthetic")]
        areas = [4 + row["channels"] / row["nodes"] for row in some]
        axes.scatter([row["nodes"] for row in some], [median(row) for row in some], areas, marker=marker, label=kind)
    if line := fits(rows).get(SYNTHETIC_FIT):
        ends = [min(row["nodes"] for row in rows), max(row["nodes"] for row in rows)]
        label = f"nodes to the power {line.exponents[0]:.2f} ± {line.halves[0]:.2f}"
        axes.plot(ends, [line.factor * nodes ** line.exponents[0] for nodes in ends], "-", color="grey", label=label)
    axes.set(xscale="log", yscale="log", xlabel="nodes of the graph", ylabel="coupling, CPU seconds")
    for row in rows:
        if not row["name"].startswith("synthetic"):
            place = (row["nodes"], median(row))
            axes.annotate(row["name"], place, textcoords="offset points", xytext=(6, -8), fontsize=7)
    axes.legend(fontsize=8, title="area: channels per node", title_fontsize=8)
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def report(rows: Sequence[Row]) -> str:
    """Table, fits and memory."""
    lines = [
        f"torch {torch.__version__}, Python {platform.python_version()}, one thread, {processor()}.",
        "",
        table(rows),
    ]
    lines += ["", *(f"- Exponent of coupling in {words}: {line}." for words, line in fits(rows).items())]
    most = max(rows, key=lambda row: float(row["couple_bytes"]))
    size = most["couple_bytes"] / 2**20
    lines.append(f"- Coupling: at most {size:.0f} MiB of resident memory beyond the weights ({most['name']}).")
    beyond = {row["name"]: row["both_bytes"] - 1e6 * row["megabytes"] for row in rows}
    name = max(beyond, key=lambda name: beyond[name])
    lines.append(
        f"- Tracing and coupling: the traced network has weights of its own; beyond these and the module's at most "
        f"{beyond[name] / 2**20:.0f} MiB ({name})."
    )
    return "\n".join([*lines, ""])


def in_own_process(name: str, repeat: int) -> Row:
    """Measure in a fresh interpreter. Raises: SystemExit with its message when it fails."""
    command = [sys.executable, __file__, "--worker", "--only", name, "--repeat", str(repeat)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of networks, separated by commas")
    parser.add_argument("--repeat", type=int, default=7, help="runs of couple (default 7)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    parser.add_argument("--plot", type=Path, help="draw seconds over nodes into this SVG (needs matplotlib)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when the exponent at one width is above 1.1, or coupling takes 1 GiB beyond the weights."""
    options = parse(arguments)
    known = list(subjects())
    names = options.only.split(",") if options.only else known
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"--only {','.join(unknown)}: not among {', '.join(known)}")
    if options.worker:
        print("\n" + json.dumps(measure(names[0], options.repeat)))
        return 0
    rows, start = [], time.monotonic()
    for number, name in enumerate(names, 1):
        rows.append(in_own_process(name, options.repeat))
        left = (time.monotonic() - start) / number * (len(names) - number) / 60
        words = f"{rows[-1]['nodes']} nodes, couple {median(rows[-1]):.3f} s"
        print(f"{number}/{len(names)} {name}: {words}; about {left:.0f} min left", file=sys.stderr, flush=True)
    text = report(rows)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if options.plot:
        draw(rows, options.plot)
    synthetic = fits(rows).get(SYNTHETIC_FIT)
    steep = synthetic is not None and synthetic.exponents[0] > LARGEST_EXPONENT
    return int(steep or any(row["couple_bytes"] >= LARGEST_MEMORY for row in rows))


if __name__ == "__main__":
    sys.exit(main())
