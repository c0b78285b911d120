"""The stages that hand the network over: export, verification on onnxruntime, measurement."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curlfx.deploy import BenchEntry, BenchSettings, OnnxFile, Speedup, export_onnx, prepare
from curlfx.deploy import bench as measure
from curlfx.deploy.statistics import CONFIDENCE
from curlfx.graph.traced import TracedModel
from curlfx.report.summary import Interval
from curlfx.run.config import ExportConfig
from curlfx.run.int8 import INT8, write_int8
from curlfx.run.job import Job
from curlfx.run.saved import PROGRAM, load, write_graph
from curlfx.run.verify import OTHER_BATCH, VerifyReport, graph_vs_slim, torch_vs_onnx

Result = dict[str, Any]
ONNX_FILES = {"dense": "dense.onnx", "slim": "slim.onnx"}


def export(job: Job) -> Result:
    """Write both networks as ONNX, BatchNorm folded and denormal weights zeroed, and the slim one as torch's own graph.

    Raises: VerificationError when the saved graph computes anything else than the network.
    """
    found: Result = {}
    for name, network in (("dense", job.traced), ("slim", job.slim)):
        file = write_onnx(network, job.file(ONNX_FILES[name]), job.config.export)
        found[name] = {"size_bytes": file.size_bytes, "opset": file.opset, "operators": file.operators}
    write_graph(job.slim, job.directory.path, job.config.model, job.subject.data.num_classes)
    if job.config.export.int8:
        found["int8"] = write_int8(job, job.file(ONNX_FILES["slim"]))
    check = graph_vs_slim(job.slim, load(job.directory.path, graph=True))
    VerifyReport((check,)).require()
    return {**found, "graph": {"size_bytes": job.file(PROGRAM).stat().st_size, "check": asdict(check)}}


def write_onnx(network: TracedModel, path: Path, config: ExportConfig) -> OnnxFile:
    """Export one network for inference; what the file holds. Raises: as `curlfx.deploy.export_onnx`."""
    ready = prepare(network)
    dynamic = config.dynamic_batch and network.dynamic_batch
    return export_onnx(
        ready.module,
        ready.example_inputs,
        path,
        dynamic_batch=dynamic,
        opset=config.opset,
        single_file=config.single_file,
    )


def verify(job: Job) -> Result:
    """Compare both files on onnxruntime with the networks in torch, for one image and for several.

    Raises: VerificationError for an output of another shape, or not finite; other differences end the run after it.
    """
    images, checks = job.test_images(OTHER_BATCH), []
    for name, network in (("dense", job.traced), ("slim", job.slim)):
        found = torch_vs_onnx(name, network, job.file(ONNX_FILES[name]), images)
        job.say(f"torch vs onnx, {name}: {max(check.error for check in found):.1e}")
        checks += found
    VerifyReport(tuple(check for check in checks if not math.isfinite(check.error))).require()
    return {"checks": [asdict(check) for check in checks]}


def bench(job: Job) -> Result:
    """Time both files on onnxruntime, turn and turn about."""
    settings = BenchSettings(**job.config.bench.model_dump(), seed=job.config.seed)
    files = ONNX_FILES | ({"int8": INT8} if job.config.export.int8 else {})
    found = measure([job.file(name) for name in files.values()], settings, progress=job.progress)
    entries = dict(zip(files, found.entries, strict=True))
    surroundings = dict(found.environment)
    versions = surroundings.pop("versions")
    speedup = entries["slim"].speedup
    ratio = speedup.ratio if speedup is not None else 1.0
    interval = f" (95 % interval {speedup.low:.2f} to {speedup.high:.2f})" if speedup is not None else ""
    job.say(f"speed-up {ratio:.2f}{interval}")
    for warning in found.warnings:
        job.say(f"note: {warning}")
    quantised = entries["int8"].speedup if "int8" in entries else None
    return {
        "speedup": ratio,
        "speedup_interval": _interval(speedup),
        **({} if quantised is None else {"int8_speedup": quantised.ratio}),
        **({} if quantised is None else {"int8_speedup_interval": _interval(quantised)}),
        "latency_ms": {name: _latency(entry) for name, entry in entries.items()},
        "timings": [{"name": name, **entry.latency_ms.to_json()} for name, entry in entries.items()],
        "measurement": (
            f"onnxruntime, {settings.provider}, threads {settings.threads}, batch {settings.batch_size}: "
            f"{found.rounds} interleaved rounds of {settings.runs} runs each; speed-up {ratio:.2f}{interval}"
        ),
        "warnings": list(found.warnings),
        "versions": versions,
        "device": {
            "training": str(job.subject.device),
            "provider": settings.provider,
            "threads": settings.threads,
            "batch_size": settings.batch_size,
            **surroundings,
        },
        "padding": job.cost.block,
    }


def _interval(speedup: Speedup | None) -> dict[str, float] | None:
    return None if speedup is None else asdict(Interval(speedup.low, speedup.high, CONFIDENCE))


def _latency(entry: BenchEntry) -> dict[str, float]:
    found = entry.latency_ms
    return {"median": found.median, "p90": found.p90, "p99": found.p99, "min": found.min, "mean": found.mean}
