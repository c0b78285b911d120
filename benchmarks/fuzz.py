"""Thousands of networks composed at random: does the slim network compute what it should?

Every network has up to twelve blocks out of the ways that networks are written (tests/networks/parts_*.py), random
weights, statistics and affine parameters. Per network: trace, couple, draw keep sets, slim, compare with the gated
network in float64 at two batch sizes, compare the predicted cost with the slim network's, export to ONNX in float32 and
compare with onnxruntime. Network i of a seed is always the same; finished ones are not examined again.

    python benchmarks/fuzz.py --networks 2000
    python benchmarks/fuzz.py --networks 2000 --part 1/2 & python benchmarks/fuzz.py --networks 2000 --part 2/2
    python benchmarks/fuzz.py --only 17 --shrink
"""

import argparse
import gc
import json
import random
import re
import signal
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the generator and the checks are those of the tests

from benchmarks.tables import fixed, markdown, percent, scientific  # noqa: E402

Row = dict[str, Any]
LIMIT = 120  # seconds that a network may take; it takes one or two
RECORD = ROOT / "benchmarks" / "results" / "fuzz"


def _too_long(_number: int, _frame: object) -> None:
    raise TimeoutError(f"no end after {LIMIT} s")


def recipe_of(seed: int, index: int) -> tuple[Any, random.Random]:
    """Network `index` of a seed, and the chooser that goes on to draw its keep sets."""
    from tests.networks.strategies import draw_recipe

    chooser = random.Random(f"{seed}-{index}")
    return draw_recipe(chooser.choice), chooser


def examined(recipe: Any, chooser: random.Random, *, onnx: bool) -> Row:
    """What was seen of one network; with the key "failure" when a check failed or something raised."""
    from tests.networks.strategies import draw_keep
    from tests.properties.examination import Examination, examine

    seen = Examination()
    row: Row = {"recipe": repr(recipe), "parts": len(recipe.parts), "kinds": sorted(recipe.kinds())}
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        examine(recipe, lambda coupling: draw_keep(chooser.choice, coupling.groups), keeps=2, onnx=onnx, into=seen)
    except Exception as error:  # noqa: BLE001 - the table reports every failure of every network
        row["failure"] = f"{seen.stage}: {type(error).__name__}: {error}".strip()[:1500]
        row["traceback"] = traceback.format_exc()[-3000:]
    finally:
        signal.alarm(0)
    return row | asdict(seen) | {"wall": round(time.perf_counter() - start, 3)}


@contextmanager
def one_registry() -> Iterator[None]:
    """PyTorch's exporter reads its table of ONNX functions anew at every export (0.8 s); here once."""
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    original = registry.__dict__["from_torchlib"]
    known: dict[Any, Any] = {}

    def from_torchlib(*arguments: Any, **options: Any) -> Any:
        key = (arguments, tuple(options.items()))
        if key not in known:
            known[key] = original.__func__(registry, *arguments, **options)
        return known[key]

    registry.from_torchlib = staticmethod(from_torchlib)
    try:
        yield
    finally:
        registry.from_torchlib = original


def simpler(recipe: Any) -> Iterator[Any]:
    """Recipes with one part less, with one option of a part at its default, or with a simpler frame."""
    for name in ("token_steps", "steps"):
        parts = getattr(recipe, name)
        for index in range(len(parts)):
            yield replace(recipe, **{name: parts[:index] + parts[index + 1 :]})
        for index, part in enumerate(parts):
            for changed in _plainer(part):
                yield replace(recipe, **{name: (*parts[:index], changed, *parts[index + 1 :])})
    if recipe.patches:
        if not recipe.token_steps:
            yield replace(recipe, patches=None, head="pool")
        yield from (replace(recipe, patches=part) for part in _plainer(recipe.patches))
    for one in fields(recipe):
        if one.name in {"dims", "stem", "head", "seed"} and getattr(recipe, one.name) != one.default:
            yield replace(recipe, **{one.name: one.default})


def _plainer(part: Any) -> Iterator[Any]:
    for one in fields(part):
        value = getattr(part, one.name)
        if one.name == "block":
            yield from (replace(part, block=block) for block in _plainer(value))
        elif value != one.default:
            yield replace(part, **{one.name: one.default})


def _sort(failure: str) -> tuple[str, ...]:
    """Stage, kind of error and line of the network that a failure names."""
    place = re.search(r"\w+\.py:\d+", failure)
    return (*failure.split(": ")[:2], place[0] if place else "")


def shrunk(recipe: Any, failure: str, *, onnx: bool, attempts: int = 3) -> tuple[Any, str]:
    """A smaller network that fails at the same stage and place with the same kind of error, and its failure."""

    def fails(candidate: Any) -> str | None:
        for number in range(attempts):  # other keep sets
            row = examined(candidate, random.Random(number), onnx=onnx)
            if "failure" in row and _sort(row["failure"]) == _sort(failure):
                return str(row["failure"])
        return None

    progress = True
    while progress:
        progress = False
        for candidate in simpler(recipe):
            found = fails(candidate)
            if found:
                recipe, failure, progress = candidate, found, True
                break
    return recipe, failure


def record_of(arguments: argparse.Namespace) -> Path:
    """The file of this part's rows."""
    number, of = arguments.part
    return Path(arguments.record) / f"seed{arguments.seed}-part{number}of{of}.jsonl"


def rows_on_record(arguments: argparse.Namespace) -> dict[int, Row]:
    """Rows of all parts by network; the last of several counts."""
    found: dict[int, Row] = {}
    for path in sorted(Path(arguments.record).glob(f"seed{arguments.seed}-part*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["index"] < arguments.networks:
                found[row["index"]] = row
    return found


def wants_onnx(index: int, arguments: argparse.Namespace) -> bool:
    """Whether onnxruntime is to compute this network."""
    return bool(arguments.onnx_every) and index % arguments.onnx_every == 0


def finished(row: Row | None, arguments: argparse.Namespace) -> bool:
    """Whether a row on record is all that is asked for."""
    return row is not None and ("failure" in row or row["onnx"] is not None or not wants_onnx(row["index"], arguments))


def work(arguments: argparse.Namespace) -> None:
    """Examine what is not on record."""
    number, of = arguments.part
    known = {} if arguments.fresh else rows_on_record(arguments)
    todo = [index for index in range(number - 1, arguments.networks, of) if not finished(known.get(index), arguments)]
    if not todo:
        return
    import torch

    torch.set_num_threads(1)
    path = record_of(arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    start, failures = time.perf_counter(), 0
    gc.collect()
    gc.freeze()  # what the imports made; collecting it again and again takes a tenth of the time
    with one_registry(), path.open("w" if arguments.fresh else "a", encoding="utf-8") as record:
        for done, index in enumerate(todo, 1):
            recipe, chooser = recipe_of(arguments.seed, index)
            row = {"index": index, **examined(recipe, chooser, onnx=wants_onnx(index, arguments))}
            record.write(json.dumps(row) + "\n")
            record.flush()
            failures += "failure" in row
            if done % 10 == 0 or done == len(todo):
                left = (time.perf_counter() - start) / done * (len(todo) - done)
                print(
                    f"{done}/{len(todo)} networks, {failures} failures, {left / 60:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )


def kind_table(rows: Sequence[Row]) -> str:
    """How many networks have each kind of part, and each of its options."""
    counts = Counter(kind for row in rows for kind in row["kinds"])
    body = []
    for kind in sorted(kind for kind in counts if "." not in kind):
        options: dict[str, list[str]] = {}
        for name in sorted(name for name in counts if name.startswith(f"{kind}.")):
            option, _, value = name.partition(".")[2].partition("=")
            options.setdefault(option, []).append(f"{value} {counts[name]}")
        body.append([kind, str(counts[kind]), "; ".join(f"{key}: {', '.join(text)}" for key, text in options.items())])
    return markdown(["kind", "networks", "of these"], body)


def summary(rows: Sequence[Row], seed: int) -> list[tuple[str, str]]:
    """The figures above the table of kinds."""
    stages = Counter(row["failure"].partition(":")[0] for row in rows if "failure" in row)
    untraced, wrong = stages.pop("trace", 0), ", ".join(f"{stage} {count}" for stage, count in stages.items())
    onnx = [row["onnx"] for row in rows if row["onnx"] is not None]
    gated = [row["gated"] for row in rows if row["stage"] in {"compare", "cost", "onnx"}]
    parts, nodes, free = ([row[name] for row in rows] for name in ("parts", "nodes", "free"))
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds.update(row["seconds"])
    whole = percent(statistics.mean(share == 1 for share in free))
    return [
        ("networks", f"{len(rows)} (seed {seed}), {len({row['recipe'] for row in rows})} different"),
        ("blocks per network", f"mean {statistics.mean(parts):.1f}, at most {max(parts)}"),
        ("nodes per traced graph", f"median {statistics.median(nodes):.0f}, at most {max(nodes)}"),
        ("trace failures", str(untraced)),
        ("mismatches and errors", f"{sum(stages.values())} ({wrong})" if wrong else "0"),
        ("gated vs slim, float64", f"worst {scientific(max(gated, default=None))} of {2 * len(gated)} keep sets"),
        ("onnxruntime vs slim, float32", f"worst {scientific(max(onnx, default=None))} of {len(onnx)} networks"),
        ("free channels inside", f"mean {percent(statistics.mean(free))}; all of them in {whole} of the networks"),
        ("free channels removed", f"mean {percent(statistics.mean(row['removed'] for row in rows))}"),
        ("CPU seconds", ", ".join(f"{stage} {fixed(total, 0)}" for stage, total in seconds.items())),
    ]


def report(rows: Sequence[Row], seed: int) -> str:
    """Both tables, and the failing recipes."""
    text = markdown(["", ""], summary(rows, seed)) + "\n\n" + kind_table(rows) + "\n"
    failed = [row for row in rows if "failure" in row]
    if failed:
        text += "\nFailing networks:\n\n" + "".join(
            f"- {row['index']}: `{row['recipe']}`: {row['failure'][:300]}\n" for row in failed
        )
    return text


def one(arguments: argparse.Namespace) -> int:
    """Examine one network of the seed and tell all about it."""
    recipe, chooser = recipe_of(arguments.seed, arguments.only)
    print(recipe)
    row = examined(recipe, chooser, onnx=wants_onnx(arguments.only, arguments))
    if "failure" not in row:
        print(f"gated vs slim {row['gated']:.1e}, onnx {scientific(row['onnx'])}")
        return 0
    print(row["traceback"])
    if arguments.shrink:
        smaller, failure = shrunk(recipe, row["failure"], onnx=row["stage"] == "onnx")
        print(f"smallest found: {smaller}\n{failure}")
    return 1


def part(text: str) -> tuple[int, int]:
    """``i/n``. Raises: ValueError."""
    number, _, of = text.partition("/")
    if not 1 <= int(number) <= int(of):
        raise ValueError(text)
    return int(number), int(of)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=part, default=(1, 1), metavar="i/n", help="every n-th network only")
    parser.add_argument("--onnx-every", type=int, default=1, metavar="N", help="onnxruntime on every N-th; 0: on none")
    parser.add_argument("--record", type=Path, default=RECORD, help="folder of finished rows, one JSON object per line")
    parser.add_argument("--fresh", action="store_true", help="examine the networks of this part again")
    parser.add_argument("--only", type=int, metavar="INDEX", help="examine this one network and show what happens")
    parser.add_argument("--shrink", action="store_true", help="with --only: look for a smaller network that fails")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is on record, examine nothing")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too")
    parser.add_argument("--failures", type=Path, help="write failing recipes to this file, one JSON object per line")
    return parser.parse_args(arguments)


def main() -> int:
    """Examine what is not on record, print the tables; 1 when a network failed."""
    arguments = parse()
    if arguments.only is not None:
        return one(arguments)
    if not arguments.tables:
        work(arguments)
    rows = [row for _, row in sorted(rows_on_record(arguments).items())]
    text = report(rows, arguments.seed)
    print(text)
    failed = [row for row in rows if "failure" in row]
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.failures:
        lines = [json.dumps({key: row[key] for key in ("index", "recipe", "failure", "traceback")}) for row in failed]
        arguments.failures.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
