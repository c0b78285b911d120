"""Commands that make files from a network: ``slim`` and ``export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from curlfx.cli.decide import plan_figures, show_plan
from curlfx.cli.document import print_json
from curlfx.cli.job import AsJson
from curlfx.cli.network import Classes, Frozen, Model, Shape, Weights, is_saved, open_coupling, open_network
from curlfx.cli.tables import show_table
from curlfx.cli.voice import say
from curlfx.files import require_writable
from curlfx.report.text import count

if TYPE_CHECKING:
    from curlfx.deploy import OnnxFile
    from curlfx.graph.traced import TracedModel
    from curlfx.planning import SlimPlan
    from curlfx.planning.apply import Absorb

Precision = Annotated[
    Literal["fp32", "fp16"], typer.Option(help="of weights and computation; inputs and outputs stay fp32")
]
Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json")]


def slim(
    model: Model,
    plan: Plan,
    out: Annotated[Path, typer.Option(help="file.safetensors, or a folder for curlfx.load")] = Path("slim.safetensors"),
    weights: Weights = None,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    absorb_bias: Annotated[
        Literal["none", "exact", "mean"], typer.Option(help="biases take over what removed channels would still emit")
    ] = "none",
    as_json: AsJson = False,
) -> None:
    """Carry out a plan and write the weights that stay.

    A folder gets the plan and the graph as well.

    For example:

        curlfx slim curlfx:resnet20 plan.json --weights dense.safetensors

        curlfx slim curlfx:resnet20 plan.json --weights dense.safetensors --out net
    """
    from curlfx.planning import SlimPlan
    from curlfx.run.job import save_tensors
    from curlfx.run.saved import require_free, save

    of_weights = out.suffix == ".safetensors"
    (require_writable if of_weights else require_free)(out)
    found = SlimPlan.load(plan)
    dense = open_network(model, weights=weights, shape=shape, classes=classes)
    network = slim_network(dense, found, ignore, absorb_bias)
    mention_random_weights(model, weights)
    if of_weights:
        save_tensors(network.module, out, plan=plan.name)
    else:
        save(network, out, plan=found, model=None if is_saved(model) else model, num_classes=classes)
    if as_json:
        print_json({"file": str(out), **plan_figures(found)})
        return
    show_plan(found)
    print(out)


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("model.onnx"),
    plan: Annotated[Path | None, typer.Option(help="plan.json: export the slim network")] = None,
    weights: Weights = None,
    slim_weights: Annotated[Path | None, typer.Option(help="slim.safetensors: weights of the slim network")] = None,
    opset: Annotated[int | None, typer.Option(min=18, max=23, help="operator set version")] = None,
    static_batch: Annotated[
        bool, typer.Option("--static-batch", help="Take batches of the example's size only.")
    ] = False,
    precision: Precision = "fp32",
    onnxslim: Annotated[bool, typer.Option("--onnxslim", help="Let onnxslim work on the graph (an extra).")] = False,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    as_json: AsJson = False,
) -> None:
    """Write a network, or what a plan leaves of it, as ONNX.

    What --precision fp16 or --onnxslim changed is compared with the network before the file is kept; exit 1 where they
    differ.

    For example:

        curlfx export torchvision:resnet18 --weights dense.safetensors

        curlfx export curlfx:resnet20 --plan plan.json --slim-weights slim.safetensors --out slim.onnx

        curlfx export runs/resnet18-1 --precision fp16 --out half.onnx
    """
    from curlfx.deploy import export_onnx, prepare
    from curlfx.deploy.simplify import check_simplifier
    from curlfx.planning import SlimPlan
    from curlfx.sources import load_weights

    if onnxslim:
        check_simplifier()
    require_writable(out)
    network = open_network(model, weights=weights, shape=shape, classes=classes)
    if plan is not None:
        network = slim_network(network, SlimPlan.load(plan), ignore)
    if slim_weights is not None:
        load_weights(network.module, slim_weights)
    mention_random_weights(model, weights if slim_weights is None else str(slim_weights))
    ready = prepare(network)
    file = export_onnx(
        ready.module,
        ready.example_inputs,
        out,
        dynamic_batch=network.dynamic_batch and not static_batch,
        opset=opset,
        precision=precision,
        simplify=onnxslim,
    )
    if as_json:
        print_json({**asdict(file), "path": str(out)})
    else:
        _show_file(file, out)


def _show_file(file: OnnxFile, out: Path) -> None:
    """What was written."""
    show_table(("operator", "number"), [(kind, str(number)) for kind, number in file.operators.items()])
    print(f"{out}: {count(file.size_bytes)}B, opset {file.opset}")


def slim_network(
    traced: TracedModel, plan: SlimPlan, ignore: list[str] | None, absorb_bias: Absorb = "none"
) -> TracedModel:
    """What a plan leaves of a network. Raises: PlanError."""
    from curlfx.planning.apply import slim as slim_by_plan

    return slim_by_plan(traced, plan, open_coupling(traced, ignore) if ignore else None, absorb_bias=absorb_bias)


def mention_random_weights(model: str, weights: str | None) -> None:
    """Say so when nothing gave the network weights."""
    if weights is None and not is_saved(model):
        say("note: no weights were given, these are random ones")
