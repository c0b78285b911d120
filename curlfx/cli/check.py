"""The command ``verify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curlfx.cli.document import print_json
from curlfx.cli.job import AsJson
from curlfx.cli.network import MOST_SEED, Classes, Frozen, Shape, Weights, open_coupling, open_network
from curlfx.cli.tables import show_table
from curlfx.cli.voice import say
from curlfx.errors import UsageError

if TYPE_CHECKING:
    from curlfx.graph.traced import TracedModel
    from curlfx.run.recheck import Record
    from curlfx.run.verify import VerifyReport


def verify(
    subject: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="a run directory or saved network, or MODEL")],
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN]", help="plan.json, with a network")] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file of the slim network, to compare as well")] = None,
    weights: Weights = None,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of the random images that are compared on")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check gated == slim == onnx; exit 1 where it fails.

    The slim network must equal the gated one, and an ONNX file or a saved graph the network it was made from. In a run
    directory every file must first of all be the one that the run wrote, and the verification on record have passed.

    For example:

        curlfx verify runs/resnet18-1

        curlfx verify curlfx:resnet20 plan.json --weights dense.safetensors --onnx slim.onnx
    """
    from curlfx.run.recheck import check_record, recheck

    if plan is None:
        if not Path(subject).is_dir():
            raise UsageError(
                f"verify {subject}: no such folder; want a run directory or a saved network, or MODEL PLAN"
            )
        record = check_record(Path(subject))
        if record is not None and not record.good:
            if as_json:
                print_json(document(record, None))
            else:
                show_record(record)
            record.require()
        found = recheck(Path(subject))
    else:
        network = open_network(subject, weights=weights, shape=shape, classes=classes)
        record = None
        found = check_plan(network, plan, {"slim": onnx} if onnx is not None else {}, ignore, seed)
    if as_json:
        print_json(document(record, found))
    else:
        show_checks(found)
        if record is not None:
            show_record(record)
    found.require()


def check_plan(
    network: TracedModel, plan: Path, files: Mapping[str, Path], ignore: list[str] | None, seed: int
) -> VerifyReport:
    """Verify a plan, and ONNX files, on random images. Raises: PlanError, ModelError."""
    import torch

    from curlfx.planning import SlimPlan
    from curlfx.run.verify import OTHER_BATCH
    from curlfx.run.verify import verify as compare

    size = network.example_inputs[0].shape[1:]
    images = torch.randn(OTHER_BATCH, *size, generator=torch.Generator().manual_seed(seed))
    coupling = open_coupling(network, ignore) if ignore else None  # else with the names that the plan remembers
    return compare(network, SlimPlan.load(plan), images, coupling=coupling, files=files)


def show_checks(found: VerifyReport) -> None:
    """Every comparison with its bound."""
    rows = [
        (one.name, f"{one.error:.1e}", f"{one.bound:.0e}", "ok" if one.passed else "FAILED") for one in found.checks
    ]
    show_table(("check", "relative error", "bound", ""), rows)


def show_record(record: Record) -> None:
    """What became of the files of a run, and what was verified when it was made."""
    files = record.files
    if files is None:
        say("note: summary.json of this run has no checksums; its files are not compared")
    else:
        for kind, names in (("missing", files.missing), ("changed", files.changed), ("extra", files.extra)):
            for name in names:
                print(f"{kind}  {name}")
        print(f"{files.same} files as the run wrote them")
    print(f"verification on record: {record.verdict}")


def document(record: Record | None, found: VerifyReport | None) -> dict[str, Any]:
    """What was compared, as JSON values; no ``checks`` where the files of a run are not what they were."""
    files = None if record is None or record.files is None else record.files
    checks = None if found is None else [{**asdict(one), "passed": one.passed} for one in found.checks]
    return {
        "files": None if files is None else {**asdict(files), "folder": str(files.folder)},
        "on_record": None if record is None else record.verdict,
        "checks": checks,
        "passed": found is not None and found.passed,
    }
