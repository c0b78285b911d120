"""The memory of this process while it opens and runs one ONNX file; `curlfx.deploy.memory` runs it as a program.

It imports nothing but numpy and onnxruntime: torch alone would take ten times the memory of many a network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_STATUS = Path("/proc/self/status")


def make_options(values: Mapping[str, int]) -> Any:
    """An `onnxruntime.SessionOptions` with these attributes."""
    options = onnxruntime.SessionOptions()
    for name, value in values.items():
        kind = type(getattr(options, name))  # an int, or the enumeration it stands for
        setattr(options, name, kind(value))
    return options


def main() -> None:
    """Run the file that stdin describes once, and print the peak of resident memory in KiB."""
    job = json.load(sys.stdin)
    arrays = np.load(job["arrays"])
    feeds = {name: arrays[key] for name, key in job["feeds"].items()}
    try:
        session = onnxruntime.InferenceSession(job["path"], make_options(job["options"]), providers=job["providers"])
        session.run(None, feeds)
    except Exception as error:  # its exceptions derive from Exception alone
        raise SystemExit(f"onnxruntime fails: {str(error).strip().splitlines()[0]}") from error
    print(peak_kib())


def peak_kib() -> int:
    """Highest resident memory of this program so far, in KiB.

    Not ``getrusage``: its ``ru_maxrss`` begins with what the process held before it became this program, so that it
    tells the memory of the parent.
    """
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
