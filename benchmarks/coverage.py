"""Half of the channels of every network of a zoo removed at random: does the slim network compute what it should?

Per model: trace, couple, remove half of the free channels of every coupling group at random (blocks respected), slim,
compare with the gated network in float64, export to ONNX in float32 and compare with onnxruntime. Weights are freshly
initialised, normalisation statistics and affine parameters random. Every model runs in a process of its own on one
thread; a row that is on record is not measured again, so that a run that was interrupted goes on where it ended.

    python benchmarks/coverage.py --zoo torchvision
    python benchmarks/coverage.py --zoo timm --couple-only --gaps gaps.txt
    python benchmarks/coverage.py --zoo timm --part 1/2        # and --part 2/2 at the same time
    python benchmarks/coverage.py --models resnet18,vit_b_16 --skip-onnx
"""

import argparse
import fnmatch
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path

from coverage_row import Row, Settings, free_share, measure
from coverage_table import ranking, summary, table
from zoo import Entry
from zoos import NEEDS, ZOOS, missing

FOLDER = Path(__file__).parent / "results"
_BUSY = 10  # wall-clock seconds allowed per CPU second: enough for a busy machine, and nothing waits for ever
_PRELOAD = ("curlfx", "curlfx.passes.pipeline", "torch.export", "torch._dynamo", "onnxruntime", "coverage_row")


def in_own_process(name: str, arguments: argparse.Namespace) -> Row:
    """Measure in a fresh process on one thread, so that neither memory nor caches of other models count.

    The processes are forked from one that has imported the libraries and done nothing else.
    """
    settings = Settings(
        keep_ratio=arguments.keep_ratio,
        seed=arguments.seed,
        onnx=not arguments.skip_onnx,
        couple_only=arguments.couple_only,
        verbose=arguments.verbose,
    )
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(arguments.zoo, name, settings, sender, arguments.timeout))
    process.start()
    sender.close()
    row: Row = {"model": name, "zoo": arguments.zoo, "kind": ""}
    found = receiver.poll(arguments.timeout * _BUSY)
    try:
        row = receiver.recv() if found else row | {"failure": f"no result after {arguments.timeout * _BUSY:g} s"}
    except EOFError:
        process.join()
        row["failure"] = why_ended(process.exitcode, arguments.timeout)
    process.join(30 if found else 0)
    process.kill()
    process.join()
    return row


def limit_cpu(seconds: float) -> None:
    """Let the system end this process once it has computed that much longer; waiting for the processor is free."""
    limit = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def why_ended(code: int | None, seconds: float) -> str:
    """What to say of a process that sent no row."""
    return f"no result after {seconds:g} s of CPU time" if code == -signal.SIGXCPU else f"process ended with {code}"


def _worker(zoo: str, name: str, settings: Settings, sender: Connection, seconds: float) -> None:
    """One row, sent to the parent; what libraries print is dropped unless asked for."""
    limit_cpu(seconds)
    with tempfile.TemporaryFile("w+") as said, redirect_stdout(said):
        entry = ZOOS[zoo]()[name]
        if settings.verbose:
            sender.send(measure(entry, settings))
        else:
            with redirect_stderr(said):
                sender.send(measure(entry, settings))


def read_record(path: Path) -> dict[str, Row]:
    """Rows on record by model; the last of several counts, and a line that was cut off does not."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["model"]] = row
    return rows


def stale(row: Row, arguments: argparse.Namespace) -> bool:
    """Whether a row on record must be measured again: a failure to retry, or one without the columns asked for."""
    if "failure" in row:
        return bool(arguments.retry)
    wanted = "reasons" if arguments.couple_only else "gated_vs_slim" if arguments.skip_onnx else "torch_vs_onnx"
    return wanted not in row


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", choices=sorted(ZOOS), default="torchvision")
    parser.add_argument("--models", help="names, separated by commas (default: all of the zoo)")
    parser.add_argument("--only", metavar="PATTERN", help="models whose name or family matches, such as '*vit*'")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every Nth model from the Ith on")
    parser.add_argument("--couple-only", action="store_true", help="trace and couple, neither slim nor compare")
    parser.add_argument("--skip-onnx", action="store_true", help="neither export nor run onnxruntime")
    parser.add_argument("--keep-ratio", type=float, default=0.5, help="share of every group that stays (default 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="finished rows, one JSON object per line (default: in results/)")
    parser.add_argument("--fresh", action="store_true", help="measure the chosen models again")
    parser.add_argument("--retry", action="store_true", help="measure the chosen models that failed again")
    parser.add_argument("--timeout", type=float, default=600, help="CPU seconds per model (default 600)")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    parser.add_argument("--out", type=Path, help="write table and summary to this Markdown file too")
    parser.add_argument("--gaps", type=Path, help="write what is in the way, most frequent first, to this file")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of every failure")
    found = parser.parse_args(arguments)
    found.record = found.record or FOLDER / f"coverage_{found.zoo}.jsonl"
    return found


def chosen(arguments: argparse.Namespace) -> list[Entry]:
    """The entries that the command line names."""
    zoo: Mapping[str, Entry] = ZOOS[arguments.zoo]()
    names = arguments.models.split(",") if arguments.models else list(zoo)
    unknown = [name for name in names if name not in zoo]
    if unknown:
        sys.exit(f"--models {','.join(unknown)}: not in {arguments.zoo}; it has {', '.join(zoo)}")
    if arguments.only:
        names = [n for n in names if any(fnmatch.fnmatch(w, arguments.only) for w in (n, zoo[n].kind))]
        if not names:
            sys.exit(f"--only {arguments.only!r}: no model of {arguments.zoo}; it has {', '.join(zoo)}")
    part, separator, parts = arguments.part.partition("/")
    if not (separator and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        sys.exit(f"--part {arguments.part!r}: want I/N with 1 <= I <= N, such as 1/2")
    return [zoo[name] for name in names[int(part) - 1 :: int(parts)]]


def measured(entries: Sequence[Entry], arguments: argparse.Namespace) -> list[Row]:
    """A row per entry, from the record or measured now and appended to it; progress on standard error."""
    known = {} if arguments.fresh else read_record(arguments.record)
    todo = {e.name for e in entries if e.name not in known or stale(known[e.name], arguments)}
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    start, done, rows = time.monotonic(), 0, []
    for number, entry in enumerate(entries, 1):
        if entry.name not in todo:
            rows.append(known[entry.name])
            continue
        row = {"model": entry.name, "kind": entry.kind} | in_own_process(entry.name, arguments)
        row["kind"] = row["kind"] or entry.kind
        with arguments.record.open("a", encoding="utf-8") as record:
            record.write(json.dumps(row) + "\n")
        rows.append(row)
        done += 1
        left = (time.monotonic() - start) / done * (len(todo) - done)
        free = f", {free_share(row):.1%} free" if "reasons" in row else ""
        say = f"{number}/{len(entries)} {entry.name}: {row.get('failure', 'ok')}{free}; {left / 60:.0f} min left"
        print(say, file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measure what is not on record, print the table; 1 when a model failed."""
    arguments = parse()
    package = missing(arguments.zoo)
    if package:
        print(f"skipped: zoo {arguments.zoo} needs {package}; pip install {package}", file=sys.stderr)
        return 0
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    preload = [*_PRELOAD, "zoos", *(filter(None, [NEEDS.get(arguments.zoo)]))]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    rows = measured(chosen(arguments), arguments)
    text = table(rows) + "\n\n" + "\n".join(f"- {line}" for line in summary(rows)) + "\n"
    print(json.dumps(rows, indent=1) if arguments.json else text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.gaps:
        arguments.gaps.write_text(ranking(rows), encoding="utf-8")
    return int(any("failure" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
