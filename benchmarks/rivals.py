"""curlfx and Torch-Pruning side by side: what each can remove, whether the result is right, how long it takes.

Each tool narrows the same networks to half of the channels. Torch-Pruning runs twice: as it is, and with the hints of
its own documentation (layers to leave alone, number of heads, attributes to correct). What comes out is compared in
float64 with the intact network whose removed channels are multiplied by zero (`rivals_oracle.py`), which neither tool
takes part in. Every network and tool runs in a process of its own; compile times are taken in one process, in turns.

    python benchmarks/rivals.py
    python benchmarks/rivals.py --only resnet18,densenet121 --repeat 9
"""

import argparse
import contextlib
import copy
import functools
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import fixed, markdown, percent, processor, publish, scientific

Row = dict[str, Any]

TOLERANCE = 1e-9
SIDES = {"curlfx": "curlfx", "hints": "Torch-Pruning, hints", "plain": "Torch-Pruning"}
RESULTS = {
    "exact": "equal to the oracle within 1e-9",
    "scale": "runs; equal once the oracle divides attention by the narrower heads: the softmax has changed, unsaid",
    "wrong": "runs, and computes something else, unsaid",
    "broken": "narrowed without complaint, and cannot run",
    "crash": "ended with an exception",
    "unchanged": "removed nothing",
    "given up": "no result in time or in memory",
    "unknown": "what was removed cannot be told from the values",
}


def judge(name: str, side: str) -> Row:
    """Narrow one network with one tool and compare it with the oracle."""
    import torch
    from rivals_oracle import (
        UnidentifiedError,
        attention_widths,
        expected_output,
        no_fast_path,
        output_error,
        removal,
        standardised_weights,
    )
    from rivals_tools import SIDES as TOOLS
    from rivals_tools import Clock, layer_rows, subjects
    from trial import flatten_outputs

    subject = subjects()[name]
    module, image = subject.make()
    rows = layer_rows(subject, module, image)
    total = sum(count for _, count in rows.values())
    victim = copy.deepcopy(module)
    try:
        narrowed = TOOLS[side](subject, victim, image, Clock())
    except Exception as error:  # noqa: BLE001 - what a tool raises is its row of the table
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        note = "out of memory (--memory)" if memory else first_line(error)
        return {"result": "given up" if memory else "crash", "note": note}
    row: Row = {"removable": sum(narrowed.removable.values()) / total}
    try:
        removed = removal(module, narrowed.parameters, standardised_weights(module, (image,)))
    except UnidentifiedError as error:
        return row | {"result": "unknown", "note": first_line(error)}
    if not removed:
        return row | {"result": "unchanged"}
    widths: list[int] = []
    try:
        with torch.no_grad(), no_fast_path(), attention_widths(widths):
            actual = flatten_outputs(narrowed.forward(image))
    except Exception as error:  # noqa: BLE001 - as above
        return row | {"result": "broken", "note": first_line(error)}
    with torch.no_grad():
        whole = flatten_outputs(module(image))
    oracles: list[tuple[str, Row]] = [("exact", {}), ("exact", {"kept_weights": True})]
    oracles += [("scale", {"attention": widths})] if widths else []
    for result, meaning in oracles:
        expected = flatten_outputs(expected_output(module, removed, (image,), **meaning))
        error, cut = output_error(actual, expected)
        row.setdefault("effect", output_error(expected, whole)[0])
        row.setdefault("error", error if math.isfinite(error) else None)
        if error <= TOLERANCE:
            return row | {"result": result, "cut": cut, "error": error if result == "exact" else row["error"]}
    return row | {"result": "wrong", "cut": cut}


def first_line(error: BaseException) -> str:
    """Class and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]


def measure_times(name: str, repeat: int, rival: str | None) -> Row:
    """CPU seconds of both tools, in turns."""
    from rivals_tools import compile_seconds, subjects

    sides = ["curlfx", rival] if rival else ["curlfx"]
    return {"times": compile_seconds(subjects()[name], sides, repeat)}


def in_own_process(options: argparse.Namespace, job: Callable[[], Row]) -> Row:
    """Run a job in a fork of this process, with bounded CPU time and memory."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(options, job, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(20 * options.timeout):
            row: Row = receiver.recv()
            return row
        return {"result": "given up", "note": f"no result after {20 * options.timeout:.0f} s of waiting"}
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return {"result": "given up", "note": f"no result after {options.timeout:.0f} s of CPU time"}
        return {"result": "crash", "note": f"process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def work(options: argparse.Namespace, job: Callable[[], Row], sender: Any) -> None:
    """The forked process: limit memory and CPU time, do the job, send its row."""
    import torch

    limit = int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (int(options.timeout), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        stream = sys.stderr if options.verbose else nothing
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            row = job()
    sender.send(row)
    sender.close()


def measure(options: argparse.Namespace, name: str, record: "Record") -> Row:
    """All sides of one network, and the times of curlfx and of the rival that got through, the one with hints first."""
    from rivals_patterns import PATTERNS

    def done(job: str, action: Callable[[], Row]) -> Row:
        return record.get(name, job, lambda: in_own_process(options, action))

    sides = {side: done(side, functools.partial(judge, name, side)) for side in SIDES}
    finished = [side for side in ("hints", "plain") if sides[side]["result"] not in {"crash", "given up"}]
    rival = finished[0] if finished else None
    row: Row = {"name": name, "sides": sides, "timed": rival, "times": None}
    if name not in PATTERNS and not options.skip_times:  # small ones take the same few milliseconds
        row["times"] = done("times", functools.partial(measure_times, name, options.repeat, rival)).get("times")
    return row


class Record:
    """What was measured before, one JSON object per network and job, in a file or in memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        self._known = {(line["name"], line["job"]): line["row"] for line in map(json.loads, lines)}

    def get(self, name: str, job: str, action: Callable[[], Row]) -> Row:
        """The row on record, or the one that the action measures."""
        if (name, job) not in self._known:
            row = self._known[name, job] = action()
            if self._path:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, "job": job, "row": row}) + "\n")
        return self._known[name, job]


def spread(times: Sequence[float]) -> str:
    """Median and range."""
    digits = 2 if statistics.median(times) >= 0.1 else 3
    return f"{fixed(statistics.median(times), digits)} ({fixed(min(times), digits)}–{fixed(max(times), digits)})"


def stages(times: Sequence[Mapping[str, float]], *names: str) -> list[float]:
    """Seconds of these stages together, by round."""
    return [sum(round_[name] for name in names if name in round_) for round_ in times]


def ratio(row: Row, *names: str) -> float:
    """Median over the rounds of the rival's time over curlfx's, these stages together."""
    theirs, ours = (stages(row["times"][side], *names) for side in (row["timed"], "curlfx"))
    return statistics.median(one / other for one, other in zip(theirs, ours, strict=True))


def correctness_table(rows: Sequence[Row]) -> str:
    """One row per network: what can be removed and whether the result is right, by side."""
    headers = [
        "network",
        *(f"{words}: {part}" for words in SIDES.values() for part in ("result", "error", "removable")),
    ]
    body = []
    for row in rows:
        cells = [row["name"]]
        for side in (row["sides"][side] for side in SIDES):
            result = side["result"] + (", outputs cut" if side.get("cut") else "")
            cells += [result, scientific(side.get("error")), percent(side.get("removable"), 0)]
        body.append(cells)
    return markdown(headers, body)


ANALYSIS = ("trace", "couple", "pruner")
REMOVAL = ("slim", "step")


def time_table(rows: Sequence[Row]) -> str:
    """One row per network: CPU seconds to analyse and to remove, and their ratios."""
    headers = ["network", "curlfx: trace s", "couple s", "slim s", "Torch-Pruning: graph and pruner s", "step s"]
    headers += ["analysis, ratio", "with removal, ratio"]
    body = []
    for row in rows:
        if not (times := row["times"]):
            continue
        cells = [row["name"], *(spread(stages(times["curlfx"], name)) for name in ("trace", "couple", "slim"))]
        if row["timed"]:
            cells += [spread(stages(times[row["timed"]], name)) for name in ("pruner", "step")]
            cells += [f"{fixed(ratio(row, *names))}x" for names in (ANALYSIS, ANALYSIS + REMOVAL)]
        else:
            cells += ["failed", "", "", ""]
        body.append(cells)
    return markdown(headers, body)


def failures(rows: Sequence[Row]) -> list[str]:
    """What was said where a tool crashed, gave up or left a network that cannot run."""
    lines = []
    for row in rows:
        for side, words in SIDES.items():
            if note := row["sides"][side].get("note"):
                lines.append(f"- {row['name']}, {words}: {row['sides'][side]['result']}: `{note}`")
    return lines


def summary(rows: Sequence[Row]) -> list[str]:
    """Counts per side, and the ratios of the times."""
    lines = []
    for side, words in SIDES.items():
        counts = Counter(row["sides"][side]["result"] for row in rows)
        found = ", ".join(f"{counts[result]} {result}" for result in RESULTS if counts[result])
        right = [row["sides"][side].get("removable", 0.0) for row in rows]
        exact = [row["sides"][side]["removable"] if row["sides"][side]["result"] == "exact" else 0.0 for row in rows]
        lines.append(
            f"- {words}, {len(rows)} networks: {found}. Removable, mean over the networks: "
            f"{percent(statistics.mean(right))}; counting exact results only {percent(statistics.mean(exact))}."
        )
    timed = [row for row in rows if row["times"] and row["timed"]]
    for names, words in ((ANALYSIS, "analysis"), (ANALYSIS + REMOVAL, "analysis and removal")):
        if timed:
            ratios = sorted(ratio(row, *names) for row in timed)
            lines.append(
                f"- Time of {words}, Torch-Pruning over curlfx, {len(timed)} networks: median "
                f"{fixed(statistics.median(ratios))}x, {fixed(ratios[0])}x to {fixed(ratios[-1])}x; curlfx is quicker "
                f"on {sum(value > 1 for value in ratios)}."
            )
    return lines


def report(rows: Sequence[Row]) -> str:
    """The whole text."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch-pruning", "torch", "torchvision")
    )
    lines = [f"{versions}, Python {platform.python_version()}, one thread, {processor()}.", ""]
    lines += [correctness_table(rows), "", *summary(rows), "", "Results:"]
    lines += [f"- *{result}*: {words}." for result, words in RESULTS.items()]
    if notes := failures(rows):
        lines += ["", "What was said:", *notes]
    if any(row["times"] for row in rows):
        lines += ["", "CPU seconds, median (range):", "", time_table(rows)]
    return "\n".join([*lines, ""])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of networks, separated by commas; --list shows them")
    parser.add_argument("--list", action="store_true", help="print the names of the networks")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of timing (default 5)")
    parser.add_argument("--skip-times", action="store_true", help="correctness only")
    parser.add_argument("--timeout", type=float, default=300, help="CPU seconds per network and tool (default 300)")
    parser.add_argument("--memory", type=float, default=12, help="GiB of address space per process (default 12)")
    parser.add_argument("--record", type=Path, help="append what is finished here, and do not measure it again")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too")
    parser.add_argument("--verbose", action="store_true", help="show what the tools print")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 2 when Torch-Pruning is not installed, 1 when curlfx is not exact everywhere."""
    options = parse(arguments)
    try:
        importlib.metadata.version("torch-pruning")
    except importlib.metadata.PackageNotFoundError:
        print(
            "rivals.py compares with Torch-Pruning, which is not installed: pip install torch-pruning", file=sys.stderr
        )
        return 2
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TIMM_FUSED_ATTN"] = "0"  # as in Torch-Pruning's examples: attention in operators that autograd shows
    from rivals_tools import subjects

    names = list(subjects())
    if options.list:
        print("\n".join(names))
        return 0
    chosen = options.only.split(",") if options.only else names
    if unknown := [name for name in chosen if name not in names]:
        print(f"--only {','.join(unknown)}: no such network; --list shows them", file=sys.stderr)
        return 2
    import_tools()
    rows = measure_all(options, chosen)
    text = report(rows)
    publish(text, options.out)
    return int(any(row["sides"]["curlfx"]["result"] != "exact" for row in rows))


def import_tools() -> None:
    """Import what every forked process needs, once."""
    for module in ("torchvision", "torch_pruning", "curlfx.passes.slim", "curlfx.passes.pipeline", "rivals_oracle"):
        importlib.import_module(module)


def measure_all(options: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    """Measure what is not on record, with the time that is left."""
    record, rows, start = Record(options.record), [], time.monotonic()
    for number, name in enumerate(names, 1):
        rows.append(measure(options, name, record))
        left = (time.monotonic() - start) / number * (len(names) - number) / 60
        results = ", ".join(f"{side} {row['result']}" for side, row in rows[-1]["sides"].items())
        print(f"{number}/{len(names)} {name}: {results}; about {left:.0f} min left", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
