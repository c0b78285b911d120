"""What the page shows beside the results of the stages: widths, the coupling graph, epochs, and time by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curlfx.deploy import BenchSettings
from curlfx.deploy import bench as measure
from curlfx.errors import ConfigError, ModelError, WeightsError
from curlfx.recovery.checkpoint import Checkpoint
from curlfx.report.accuracy import CONTROL, TRAININGS
from curlfx.report.layers import width_rows
from curlfx.report.outline import as_values, outline
from curlfx.run.deployment import ONNX_FILES
from curlfx.run.int8 import INT8
from curlfx.run.job import Job

RECOVER = "recover"
CONTROL_FILE = "control-"


def exhibits(job: Job, layers: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """Everything of a job whose other stages are done, as JSON values; ``layers`` are the rows of ``layers.csv``."""
    operators, remarks = time_by_operator(job)
    return {
        "widths": width_rows(job.coupling, layers, job.alive),
        "outline": as_values(*outline(job.coupling)),
        "epochs": epochs(job.directory.checkpoints),
        "operators": operators,
        "remarks": remarks,
    }


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Every epoch of every training whose checkpoint is still in the folder, with the name of its ``stage``."""
    files = {stage: folder / f"{stage}.pt" for stage in TRAININGS}
    for path in sorted(folder.glob(f"{CONTROL_FILE}*.pt")):
        name, _, training = path.stem.removeprefix(CONTROL_FILE).partition("-")
        files[f"{CONTROL}{name}, {training or RECOVER}"] = path
    found = []
    for stage, path in files.items():
        try:
            history = Checkpoint.load(path).history if path.is_file() else ()
        except WeightsError:
            continue  # nothing depends on it any more
        found += [{"stage": stage, **asdict(record)} for record in history]
    return found


def time_by_operator(job: Job) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Time by operator of every ONNX file, and what there is to say about it; {} and why where it cannot be had."""
    bench = job.config.bench
    settings = BenchSettings(
        batch_size=bench.batch_size,
        threads=bench.threads,
        provider=bench.provider,
        rounds=2,
        runs=1,
        warmup=1,
        seed=job.config.seed,
        profile=True,
    )
    files = ONNX_FILES | ({"int8": INT8} if job.config.export.int8 else {})
    try:
        found = measure([job.file(name) for name in files.values()], settings)
    except (ConfigError, ModelError) as error:
        return {}, [f"operators could not be timed: {error}"]
    profiles = {name: entry.profile for name, entry in zip(files, found.entries, strict=True)}
    operators = {name: [asdict(one) for one in of.operators] for name, of in profiles.items() if of is not None}
    remarks = [line for name, of in profiles.items() if of is not None for line in of.sentences(files[name])]
    return operators, remarks
