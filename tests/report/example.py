"""A page with every chart on it: a real network, and made-up measurements of it."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel
from curlfx.models import MODELS
from curlfx.passes.slim import Slim
from curlfx.recovery.checkpoint import EpochRecord
from curlfx.report.content import PageContent
from curlfx.report.layers import frozen_rows, group_rows, layer_rows, width_rows
from curlfx.report.outline import as_values, outline
from curlfx.report.summary import Interval, Latency, NetworkFigures, Summary, Verification

FIGURES = NetworkFigures(2_000_000, 2_100_000, 50_000, 210_000, 0.98, Latency(1.0, 1.5, 2.0, 0.9, 1.1))
SUMMARY = Summary(
    model="<b>mine</b>",
    seed=0,
    versions={"torch": "2"},
    device={"cpu": "one", "cpu_flags": ["avx2", "fma"]},
    dense=FIGURES,
    slim=NetworkFigures(1_000_000, 1_200_000, 20_000, 90_000, 0.97, Latency(0.5, 0.6, 1.0, 0.4, 0.5)),
    speedup=2.0,
    speedup_interval=Interval(1.95, 2.05, 0.95),
    verification=Verification(1e-16, 1e-6, passed=True),
    target={"macs": "50%"},
    importance="kl",
    recovery={
        "epochs": 1,
        "accuracy_before": 0.5,
        "accuracy_before_without_absorbing": None,
        "accuracy_after": {"recalibrate": None, "recover": 0.75},
    },
    seconds={"train": 1.0},
).as_dict()
KEPT = 2
"""Every so many channels of a group stay."""


@cache
def network() -> tuple[TracedModel, Coupling]:
    traced = trace(MODELS["digits"](), (torch.randn(2, 1, 8, 8),))
    return traced, couple(traced)


def timing(name: str, median: float) -> dict[str, Any]:
    spread = {"p10": 0.9, "p90": 1.2, "p99": 1.5, "min": 0.8, "mean": 1.05}
    return {"name": name, "median": median, "cov": 0.05, "runs": 200} | {
        key: median * factor for key, factor in spread.items()
    }


def training(stage: str, first: float, last: float, count: int) -> list[dict[str, Any]]:
    heights = np.linspace(first, last, count).tolist()
    records = [EpochRecord(n, 2.0 / n, height - 0.01, height, 0.05 / n, 1.5) for n, height in enumerate(heights, 1)]
    return [{"stage": stage, **asdict(record)} for record in records]


def searched(keep: dict[str, int]) -> dict[str, Any]:
    def one(value: float, macs: int) -> dict[str, Any]:
        return {"widths": keep, "value": value, "cost": {"macs": macs, "params": 20_000, "size_bytes": 80_000}}

    front = [one(0.9 - 0.4 * step, round(1e6 * (0.4 + step / 2))) for step in np.linspace(0, 1, 6)]
    return {
        "best": front[-1],
        "front": front,
        "looked_at": 40,
        "measured": 40,
        "known": 0,
        "history": [0.8, 0.6, 0.5],
        "controls": {
            "uniform": {**one(0.7, 900_000), "accuracy": 0.95},
            "random": {**one(0.65, 890_000), "accuracy": 0.94},
        },
        "stages": ["relu", "linear"],
        "proxy": "stages",
    }


def example(**changes: Any) -> PageContent:
    """Everything a page can show; ``changes`` are fields of the content."""
    traced, coupling = network()
    keep = {group.id: tuple(range(0, group.width, KEPT)) for group in coupling.groups}
    cost = CostModel(traced, coupling)
    layers = layer_rows(traced, Slim(coupling, keep)(traced), coupling, cost, coupling.alive(keep))
    draw = np.random.default_rng(0)
    summary = {
        **SUMMARY,
        "gradual": {
            "steps": [
                {"epoch": 2, "channels": 100, "left": 476, "macs": 1_500_000, "params": 30_000, "seconds": 1.0},
                {"epoch": 4, "channels": 100, "left": 376, "macs": 1_000_000, "params": 20_000, "seconds": 1.0},
            ],
            "training_macs": 5,
            "training_macs_dense": 10,
            "training_seconds": 10.0,
            "training_seconds_dense": 15.0,
            "reached": True,
        },
        "latency": {
            "limit_ms": 0.5,
            "attempts": [[0.5, 0.55], [0.46, 0.49]],
            "prediction_error": {"median": 0.03, "worst": 0.07, "networks": 16},
        },
        "seconds": {"train": 13.5, "score": 6.25, "recover": 20.0},
    }
    operators = {
        "dense": [
            {"op_type": "Conv (NCHWc)", "milliseconds": 0.9, "share": 0.9, "nodes": 10},
            {"op_type": "ReorderInput", "milliseconds": 0.1, "share": 0.1, "nodes": 2},
        ],
        "slim": [{"op_type": "Conv (NCHWc)", "milliseconds": 0.4, "share": 1.0, "nodes": 10}],
    }
    fields: dict[str, Any] = {
        "summary": summary,
        "layers": layers,
        "groups": group_rows(coupling, keep),
        "frozen": frozen_rows(coupling),
        "checks": [{"name": "gated vs slim", "error": 1e-16, "bound": 1e-9}],
        "notes": ["a note & more"],
        "timings": [timing("dense", 1.0), timing("slim", 0.5), timing("int8", 0.3)],
        "measurement": "40 rounds, speed-up 2.00 (95 % interval 1.95 to 2.05)",
        "images": 450,
        "padding": 16,
        "config": "seed: 0\nimportance: kl\n",
        "command": "curlfx run model=curlfx:digits 'ignored_layers=[\"a b\"]'",
        "widths": width_rows(coupling, layers, coupling.alive(keep)),
        "scores": {group.id: draw.lognormal(-6, 2, group.width).tolist() for group in coupling.groups},
        "keep": keep,
        "outline": as_values(*outline(coupling)),
        "epochs": [
            *training("train", 0.6, 0.98, 8),
            *training("overparam", 0.7, 0.9, 3),
            *training("recover", 0.9, 0.96, 5),
            *training("refine", 0.96, 0.97, 4),
            *training("control uniform, recover", 0.8, 0.95, 5),
        ],
        "operators": operators,
        "remarks": ["slim.onnx: 1 convolution left the fast path"],
        "search": searched({group.id: group.width for group in coupling.groups}),
    }
    return PageContent(**{**fields, **changes})


CHARTS = (
    "stations", "epochs", "controls", "front", "generations", "steps", "latency", "attempts", "operators", "widths",
    "macs", "coupling", "scores", "seconds",
)  # fmt: skip
"""Ids of the charts of `example`, without ``chart-``."""
