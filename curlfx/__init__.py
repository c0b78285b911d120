"""Make trained networks physically narrower: trace, couple, score, plan, slim, verify, export, measure.

The names of `EXPORTS` are loaded when they are first used, so that ``import curlfx`` is quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curlfx.coupling import Coupling as Coupling
    from curlfx.coupling import couple as couple
    from curlfx.coupling import explain as explain
    from curlfx.deploy import bench as bench
    from curlfx.deploy import export_onnx as export_onnx
    from curlfx.deploy import measure_latency as measure_latency
    from curlfx.deploy import plan_for_latency as plan_for_latency
    from curlfx.errors import CurlfxError as CurlfxError
    from curlfx.gradual import GradualPruner as GradualPruner
    from curlfx.gradual import Schedule as Schedule
    from curlfx.graph import TracedModel as TracedModel
    from curlfx.graph import show as show
    from curlfx.graph import trace as trace
    from curlfx.importance import Scores as Scores
    from curlfx.importance import score as score
    from curlfx.inplace import slim_ as slim_
    from curlfx.lrp import Relevance as Relevance
    from curlfx.lrp import relevance as relevance
    from curlfx.planning import SlimPlan as SlimPlan
    from curlfx.planning import plan as plan
    from curlfx.planning import prune_iteratively as prune_iteratively
    from curlfx.planning.apply import slim as slim
    from curlfx.recovery import evaluate as evaluate
    from curlfx.recovery import recover as recover
    from curlfx.report.drawing import draw as draw
    from curlfx.run.runner import run as run
    from curlfx.run.saved import load as load
    from curlfx.run.saved import save as save
    from curlfx.run.verify import VerifyReport as VerifyReport
    from curlfx.run.verify import verify as verify
    from curlfx.sources import detection_forward as detection_forward
    from curlfx.sources import from_datasets as from_datasets
    from curlfx.sources import load_data as load_data
    from curlfx.sources import load_model as load_model
    from curlfx.sources import load_weights as load_weights
    from curlfx.sources import write_expanded as write_expanded

__version__ = "0.1.0"

EXPORTS: Mapping[str, str] = MappingProxyType(
    {
        "Coupling": "curlfx.coupling",
        "CurlfxError": "curlfx.errors",
        "GradualPruner": "curlfx.gradual",
        "Relevance": "curlfx.lrp",
        "Schedule": "curlfx.gradual",
        "Scores": "curlfx.importance",
        "SlimPlan": "curlfx.planning",
        "TracedModel": "curlfx.graph",
        "VerifyReport": "curlfx.run.verify",
        "bench": "curlfx.deploy",
        "couple": "curlfx.coupling",
        "draw": "curlfx.report.drawing",
        "detection_forward": "curlfx.sources",
        "evaluate": "curlfx.recovery",
        "explain": "curlfx.coupling",
        "export_onnx": "curlfx.deploy",
        "from_datasets": "curlfx.sources",
        "load": "curlfx.run.saved",
        "load_data": "curlfx.sources",
        "load_model": "curlfx.sources",
        "load_weights": "curlfx.sources",
        "measure_latency": "curlfx.deploy",
        "plan": "curlfx.planning",
        "plan_for_latency": "curlfx.deploy",
        "prune_iteratively": "curlfx.planning",
        "recover": "curlfx.recovery",
        "relevance": "curlfx.lrp",
        "run": "curlfx",  # the package curlfx.run, which can be called
        "save": "curlfx.run.saved",
        "score": "curlfx.importance",
        "show": "curlfx.graph",
        "slim": "curlfx.planning.apply",
        "slim_": "curlfx.inplace",
        "trace": "curlfx.graph",
        "verify": "curlfx.run.verify",
        "write_expanded": "curlfx.sources",
    }
)
"""Public name to the module that has it."""


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module 'curlfx' has no attribute {name!r}")
    if name == "run":
        return importlib.import_module("curlfx.run")
    found = getattr(importlib.import_module(EXPORTS[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
