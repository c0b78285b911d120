"""MACs and parameters of every torchvision model against torch's own counters, on shapes alone (nothing is computed).

python benchmarks/cost_check.py
python benchmarks/cost_check.py --models resnet50,swin_t --out benchmarks/results/cost_torchvision.md

MACs are for one image at the size that the model is usually given; ``flop counter`` is half of what
`torch.utils.flop_counter` counts, which takes a multiply-add as two. ``params`` are those that the graph reads;
``unread`` is what the model holds besides (auxiliary heads that only training uses). ``cost model`` says whether the
model that prices keep sets gives the same two sums for the dense network.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from tables import fixed, markdown, publish
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import Entry, torchvision_models

from curlfx.cost import CostModel, macs, params
from curlfx.coupling import couple
from curlfx.graph import trace

HEADERS = ["model", "input", "MACs", "flop counter", "equal", "params", "unread", "cost model", "s"]
LARGE = {"classification": 224, "segmentation": 520, "video": 112}


def usual(entry: Entry) -> tuple[int, ...]:
    """Input shape without the batch axis: the zoo's where the network fixes it, else the usual image size."""
    *lead, height, _ = entry.shape
    size = max(height, LARGE[entry.kind])
    return (*lead, size, size)


def uninitialised(entry: Entry) -> nn.Module:
    """The network with whatever its weights' memory holds: drawing them would take most of the time."""
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    with mock.patch.multiple(nn.init, **dict.fromkeys(names, lambda tensor, *_, **__: tensor)):
        return entry.build().eval()


def measure(entry: Entry) -> tuple[list[str], bool]:
    """One row of the table, and whether everything in it agrees."""
    start = time.perf_counter()
    module = uninitialised(entry)
    traced = trace(module, (torch.empty(1, *usual(entry)),))
    found, read = sum(macs(traced).values()), sum(params(traced).values())
    dense = CostModel(traced, couple(traced)).dense
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.to("meta")(torch.empty(1, *usual(entry), device="meta"))
    counted, odd = divmod(counter.get_total_flops(), 2)
    unread = sum(parameter.numel() for parameter in module.parameters()) - read
    same, priced = found == counted and not odd, (dense.macs, dense.params) == (found, read)
    shape = "x".join(map(str, usual(entry)))
    numbers = [f"{found:,}", f"{counted:,}", "yes" if same else "NO", f"{read:,}", f"{unread:,}"]
    row = [entry.name, shape, *numbers, "equal" if priced else "DIFFERS", fixed(time.perf_counter() - start, 1)]
    return row, same and priced


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit status 1 when any number disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="names with commas between them; default: all")
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    entries = torchvision_models()
    names = options.models.split(",") if options.models else list(entries)
    rows, agreed = [], 0
    for name in names:
        row, fine = measure(entries[name])
        rows.append(row)
        agreed += fine
        print("  ".join(row), file=sys.stderr, flush=True)
    command = "python benchmarks/cost_check.py" + (f" --models {options.models}" if options.models else "")
    text = f"`{command}` with torch {torch.__version__}: {agreed} of {len(rows)} agree\n\n{markdown(HEADERS, rows)}\n"
    publish(text, options.out)
    return 0 if agreed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
