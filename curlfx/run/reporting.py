"""The last stage: ``summary.json`` and ``report.html`` from what the others recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic import TypeAdapter, ValidationError

from curlfx.errors import OutputError, first_line
from curlfx.files import read_json
from curlfx.importance import Scores
from curlfx.planning import SlimPlan
from curlfx.report.content import PageContent
from curlfx.report.layers import from_csv
from curlfx.report.page import render
from curlfx.report.summary import Interval, Latency, NetworkFigures, Summary, Verification
from curlfx.run.checksums import checksums
from curlfx.run.command import command
from curlfx.run.config import RecoveryConfig
from curlfx.run.directory import CONFIG, PAGE, STAGES, STATE, SUMMARY, RunDirectory, write_json, write_text
from curlfx.run.exhibits import exhibits
from curlfx.run.job import Job, reading
from curlfx.run.search import SEARCH
from curlfx.run.verify import Check, VerifyReport

FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, jinja2.TemplateError)
"""What drawing the page comes to where a record of a stage holds other values than a run writes."""


def report(job: Job) -> dict[str, Any]:
    """Write the summary and the page; the result is what the page shows beside the results of the other stages."""
    found = exhibits(job, _layers(job.directory))
    write_json(job.file(SUMMARY), _summary(job).as_dict())
    _draw(job.directory, found)
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run. Raises: OutputError when it is missing, or naming the key that is wrong."""
    try:
        summary: dict[str, Any] = read_json(folder / SUMMARY)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{folder / SUMMARY}: cannot read it ({error}); is this the directory of a finished run?"
        ) from error
    fault = _fault(summary)
    if fault is not None:
        raise OutputError(f"{folder / SUMMARY}: {fault}; restore the file, or start a new run")
    return summary


def _fault(summary: Any) -> str | None:
    """What keeps ``summary`` from being that of a run; None: nothing."""
    if not isinstance(summary, dict):
        return f"it holds a {type(summary).__name__}, want keys with values"
    try:
        TypeAdapter(Summary).validate_python(summary)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            return f"key '{key}' is missing"
        return f"key '{key}' = {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    missing = [key for key in ("accuracy_before", "accuracy_after") if key not in summary["recovery"]]
    return f"key 'recovery.{missing[0]}' is missing" if missing else None


def write_page(directory: RunDirectory) -> None:
    """Draw ``report.html`` again from the files of a finished run.

    Raises: OutputError where one is missing, or holds what a run does not write.
    """
    missing = next((stage for stage in STAGES if stage not in (*directory.done, "report")), None)
    if missing is not None:
        raise OutputError(
            f"{directory.path / STATE}: stage '{missing}' is not done; go on with curlfx run resume={directory.path}"
        )
    try:
        _draw(directory, directory.done.get("report", {}))
    except FAULTS as error:
        raise OutputError(
            f"{directory.path}: its records cannot be shown ({type(error).__name__}: {first_line(error)}); restore "
            f"{STATE} and the files beside it, or start a new run"
        ) from error


def _draw(directory: RunDirectory, found: Mapping[str, Any]) -> None:
    """Write the page from the files of the other stages, and what `report` found. Raises: OutputError."""
    summary = read_summary(directory.path)
    config = (directory.path / CONFIG).read_text(encoding="utf-8")
    slim, bench, verify = (directory.done[stage] for stage in ("slim", "bench", "verify"))
    changed = slim["statistics_change"]
    notes = list(directory.done["trace"]["notes"])
    if changed:
        notes.append(
            f"A normalisation averages over channels of {', '.join(changed)}: it now averages over the kept ones."
        )
    if absorbed := slim.get("absorbed"):
        notes += absorbed["refused"]
    content = PageContent(
        summary=summary,
        layers=_layers(directory),
        groups=slim["groups"],
        frozen=slim["frozen"],
        checks=[*_of_training(directory), slim["check"], *verify["checks"]],
        notes=notes,
        timings=bench["timings"],
        measurement=bench["measurement"],
        warnings=bench["warnings"],
        images=directory.done["accuracy"]["images"],
        padding=bench["padding"],
        config=config,
        command=command(yaml.safe_load(config)),
        search=_search(directory),
        **_scores(directory),
        **found,
    )
    write_text(directory.path / PAGE, render(content))


def _layers(directory: RunDirectory) -> list[dict[str, str]]:
    """Rows of ``layers.csv``. Raises: OutputError."""
    path = directory.path / "layers.csv"
    with reading(path):
        return from_csv(path.read_text(encoding="utf-8"))


def _scores(directory: RunDirectory) -> dict[str, Any]:
    """Scores of the dense network and what stays, where both are still there. Raises: OutputError."""
    path, plan = directory.checkpoints / "scores.json", directory.path / "plan.json"
    if not (path.is_file() and plan.is_file()):
        return {}
    with reading(path):
        scores = Scores.from_json(path.read_text(encoding="utf-8"))
    with reading(plan):
        keep = SlimPlan.from_json(plan.read_text(encoding="utf-8")).keep
    return {"scores": scores.values, "keep": keep}


def _search(directory: RunDirectory) -> dict[str, Any] | None:
    """``search.json``; None where nothing was searched for. Raises: OutputError."""
    path = directory.path / SEARCH
    if not path.is_file():
        return None
    with reading(path):
        record: dict[str, Any] = read_json(path)
    return record


def _summary(job: Job) -> Summary:
    config, done = job.config, job.directory.done
    dense, slim = _figures(done, "dense"), _figures(done, "slim")
    gated, checks = done["slim"]["check"], done["verify"]["checks"]
    interval = done["bench"].get("speedup_interval")  # an earlier version measured without it
    passed = VerifyReport(tuple(Check(**check) for check in (gated, *checks))).passed
    return Summary(
        model=config.model,
        seed=config.seed,
        versions=done["bench"]["versions"],
        device=done["bench"]["device"],
        dense=dense,
        slim=slim,
        speedup=done["bench"]["speedup"],
        speedup_interval=None if interval is None else Interval(**interval),
        verification=Verification(gated["error"], max(check["error"] for check in checks), passed=passed),
        target=config.target.as_mapping(),
        importance=config.importance,
        recovery={**config.recovery.model_dump(mode="json"), **_recovered(config.recovery, done)},
        seconds={stage: round(seconds, 3) for stage, seconds in job.directory.seconds.items()},
        int8=_int8(done),
        latency=done["plan"].get("latency"),
        gradual=done["train"].get("gradual"),
        files=checksums(job.directory.path),
    )


def _of_training(directory: RunDirectory) -> list[Mapping[str, Any]]:
    """The check of a network that was pruned while it was trained."""
    found = directory.done["train"].get("gradual")
    return [] if found is None else [found["check"]]


def _int8(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The figures of the quantised file, if there is one."""
    if "int8" not in done["export"]:
        return None
    bench = done["bench"]
    found = {**done["export"]["int8"], "latency_ms": bench["latency_ms"]["int8"], "speedup": bench["int8_speedup"]}
    interval = bench.get("int8_speedup_interval")  # likewise
    return found if interval is None else {**found, "speedup_interval": interval}


def _recovered(config: RecoveryConfig, done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy on the test images before the recovery, and after each of its stages; None where one did nothing."""
    final = done["accuracy"]["accuracy"]
    epochs = {"overparam": config.overparam.epochs, "recover": config.epochs, "refine": config.refine.epochs}
    trained = [stage for stage, count in epochs.items() if count]
    after = {stage: done[stage]["accuracy"] for stage in ("recalibrate", "overparam", "recover")}
    after = {
        **{stage: after.get(stage) for stage in ("recalibrate", *epochs)},
        **dict.fromkeys(trained[-1:], final),
    }
    before = done["unrecovered"]
    return {
        "accuracy_before": before["accuracy"],
        "accuracy_before_without_absorbing": before.get("without_absorbing"),
        "accuracy_after": after,
    }


def _figures(done: Mapping[str, Mapping[str, Any]], network: str) -> NetworkFigures:
    cost = done["plan"][network]
    accuracy = done["dense" if network == "dense" else "accuracy"]["accuracy"]
    return NetworkFigures(
        macs=cost["macs"],
        padded_macs=cost["padded_macs"],
        params=cost["params"],
        size_bytes=done["export"][network]["size_bytes"],
        accuracy=accuracy,
        latency_ms=Latency(**done["bench"]["latency_ms"][network]),
    )
