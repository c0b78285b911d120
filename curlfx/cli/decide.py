"""Commands that decide what goes: ``score`` and ``plan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curlfx.cli.document import print_json
from curlfx.cli.job import AsJson
from curlfx.cli.network import MOST_DIGITS, Classes, Frozen, Model, Seed, Shape, Weights, open_coupling, open_network
from curlfx.cli.tables import show_table
from curlfx.cli.voice import progress_shown, say
from curlfx.errors import PlanError, TargetError, UsageError
from curlfx.files import read_text, require_writable, write_bytes
from curlfx.report.text import count, share

if TYPE_CHECKING:
    from curlfx.coupling import Coupling
    from curlfx.deploy import TableSettings
    from curlfx.graph import TracedModel
    from curlfx.importance import Scores
    from curlfx.planning import Amount, SlimPlan

SCORES = Path("scores.json")
OF_A_TARGET = ("target", "round_to", "allocation", "per", "floor", "provider", "threads", "batch_size", "probes")
OF_A_MEASUREMENT = ("threads", "batch_size", "probes")
Data = Annotated[str | None, typer.Option(help="training images that data-driven criteria look at")]
Out = Annotated[Path, typer.Option(help="file to write")]
ScoresFile = Annotated[Path | None, typer.Option(help="scores.json of 'curlfx score' (default: scores.json here)")]
Target = Annotated[list[str] | None, typer.Option(metavar="KEY=AMOUNT", help="like macs=50% (the default)")]
Allocation = Annotated[
    Literal["global", "uniform", "knapsack", "greedy"] | None,
    typer.Option(help="who gives how much (default: knapsack for latency_ms, else global)"),
]
Per = Annotated[
    Literal["auto", "channel", "macs", "padded_macs", "latency"],
    typer.Option(help="divide scores by what a channel costs"),
]
WidthsFile = Annotated[
    Path | None, typer.Option(help="YAML or JSON: kept channels, or a share, by group or pattern; in place of a target")
]
Width = Annotated[list[str] | None, typer.Option(metavar="GROUP=N", help="the same for one group, above --widths")]


def score(
    model: Model,
    out: Out = Path("scores.json"),
    importance: Annotated[str, typer.Option(help="criterion")] = "kl",
    divergence: Annotated[str, typer.Option(help="auto, softmax, bernoulli or embedding, for kl")] = "auto",
    data: Data = None,
    weights: Weights = None,
    proxy_images: Annotated[int, typer.Option(min=1, help="how many images of the data")] = 256,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score every channel and write scores.json.

    A higher score stays.

    For example:

        curlfx score curlfx:resnet20 --importance magnitude --weights dense.safetensors

        curlfx score curlfx:resnet20 --data cifar10:DIR --weights dense.safetensors
    """
    from curlfx.importance import check_criterion
    from curlfx.importance import score as score_channels
    from curlfx.run.subject import scoring_batches
    from curlfx.sources import check_fit, load_data

    check_criterion(importance, divergence)
    require_writable(out)
    traced = open_network(model, weights=weights, shape=shape, classes=classes)
    coupling = open_coupling(traced, ignore)
    images = None
    if data is not None:
        source = load_data(data, shape=tuple(traced.example_inputs[0].shape[1:]))
        check_fit(traced.module, source)
        images = scoring_batches(source, proxy_images, seed, importance)
    with progress_shown() as (progress, _):
        found = score_channels(
            traced, coupling, importance, data=images, seed=seed, progress=progress, divergence=divergence
        )
    write_bytes(out, found.to_json().encode())
    if as_json:
        facts = {"channels": coupling.total, "groups": len(coupling.groups), "importance": importance}
        print_json({"file": str(out), **facts, "details": dict(found.details)})
    else:
        print(f"{out}: {coupling.total} channels in {len(coupling.groups)} groups by {importance}")


def plan(
    context: typer.Context,
    model: Model,
    scores: ScoresFile = None,
    out: Out = Path("plan.json"),
    target: Target = None,
    round_to: Annotated[str, typer.Option(help="kept widths are multiples of this, or auto")] = "auto",
    allocation: Allocation = None,
    per: Per = "auto",
    floor: Annotated[float, typer.Option(help="share of every group that always stays")] = 0.3,
    widths: WidthsFile = None,
    width: Width = None,
    provider: Annotated[str, typer.Option(help="where latency_ms is measured, as of 'curlfx bench'")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="likewise")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="likewise")] = 1,
    probes: Annotated[int, typer.Option(min=3, help="narrow networks measured for latency_ms")] = 24,
    shape: Shape = None,
    classes: Classes = None,
    ignore: Frozen = None,
    as_json: AsJson = False,
) -> None:
    """Choose the channels that stay and write plan.json.

    The target is just met: no channel goes that need not. For latency_ms narrow networks are measured first, for some
    minutes once on a machine, and plans are measured until one meets the target. With --widths or --width every group
    gets the width that is given; without scores its first channels stay, which is for structures that are trained anew.

    For example:

        curlfx plan curlfx:resnet20 --target macs=50% --target params=60%

        curlfx plan torchvision:resnet18 --target latency_ms=60%

        curlfx plan torchvision:resnet18 --width 'layer1.*=75%' --width layer4.0.conv1.weight=256
    """
    require_writable(out)
    given = _given_widths(context, widths, width or [])
    targets = parsed_targets(target or ["macs=50%"])
    bare = bool(given) and scores is None and not SCORES.exists()
    ranking = None if bare else read_scores(scores or SCORES)
    traced = open_network(model, shape=shape, classes=classes)
    coupling = open_coupling(traced, ignore)
    if given or ranking is None:
        found = _by_widths(traced, coupling, ranking, given)
    else:
        chosen = {"floor": floor, "per": per, "allocation": allocation}
        place = {"provider": provider, "threads": threads, "batch_size": batch_size, "probes": probes}
        found = _by_target(context, traced, coupling, ranking, targets, round_to, chosen, place)
    found = found.noting(model=model, arguments={} if classes is None else {"num_classes": classes})
    found.save(out)
    if as_json:
        print_json({"file": str(out), **plan_figures(found), "widths": found.widths})
    else:
        show_plan(found)
        _show_widths(found, coupling)
        print(out)


def _given_widths(context: typer.Context, file: Path | None, texts: list[str]) -> dict[str, int | float | str]:
    """Widths in place of a target; {} for none. Raises: UsageError naming the first option that belongs to a target."""
    from curlfx.cli.widths import parsed_widths

    given = parsed_widths(file, texts)
    refused = next((name for name in OF_A_TARGET if given and _chosen(context, name)), None)
    if refused is not None:
        option = refused.replace("_", "-")
        raise UsageError(f"--{option}: --width and --widths stand in place of a target; leave it out")
    return given


def _show_widths(found: SlimPlan, coupling: Coupling) -> None:
    from curlfx.report.layers import group_rows

    rows = [(row["id"], str(row["width"]), str(row["kept"])) for row in group_rows(coupling, found.keep)]
    show_table(("group", "before", "after"), rows)


def _by_widths(
    traced: TracedModel, coupling: Coupling, scores: Scores | None, given: Mapping[str, int | float | str]
) -> SlimPlan:
    """A plan with the widths that are given; without scores the first channels stay. Raises: PlanError."""
    from curlfx.planning import plan_from_widths

    if scores is None:
        say("note: no scores were given, the first channels of every group stay")
    return plan_from_widths(traced, coupling, scores, given)


def _by_target(
    context: typer.Context,
    traced: TracedModel,
    coupling: Coupling,
    scores: Scores,
    targets: dict[str, Amount],
    round_to: str,
    options: dict[str, Any],
    place: dict[str, Any],
) -> SlimPlan:
    """A plan that meets the targets; a latency is measured at ``place``. Raises: as `curlfx.plan`; UsageError."""
    from curlfx.deploy import TableSettings
    from curlfx.deploy.session import provider_name
    from curlfx.planning import plan as make_plan
    from curlfx.planning import resolve_round_to

    provider_name(place["provider"])
    step = resolve_round_to("auto" if round_to == "auto" else _whole(round_to), place["provider"])
    options = {**options, "round_to": step}
    if "latency_ms" in targets:
        return _measured(traced, coupling, scores, targets, TableSettings(**place, round_to=step), options)
    idle = next((name for name in OF_A_MEASUREMENT if _chosen(context, name)), None)
    if idle is not None:
        raise UsageError(f"--{idle.replace('_', '-')}: nothing is measured without --target latency_ms=…; leave it out")
    return make_plan(traced, coupling, scores, targets, **options)


def _measured(
    traced: TracedModel,
    coupling: Coupling,
    scores: Scores,
    targets: dict[str, Amount],
    settings: TableSettings,
    options: dict[str, Any],
) -> SlimPlan:
    """A plan that meets a measured latency. Raises: BudgetError when none does."""
    from curlfx.deploy import check_request, measure_latency, plan_for_latency

    check_request(traced, coupling, scores, targets, **options)
    with progress_shown() as (progress, _):
        table = measure_latency(traced, coupling, settings, progress=progress)
        error = table.prediction_error(traced, coupling)
        found = plan_for_latency(traced, coupling, scores, targets, table, settings, progress=progress, **options)
    say(
        f"latency table: {error.networks} networks, predicted to {error.median:.1%} (median), {error.worst:.1%} (worst)"
    )
    say(f"latency: measured {found.measured_ms:.3g} ms, target {found.limit_ms:.3g}, dense {found.dense_ms:.3g}")
    found.require("raise the target, lower --floor, or measure when the machine is idle")
    return found.plan


def plan_figures(found: SlimPlan) -> dict[str, Any]:
    """Cost before and after, as JSON."""
    return {"target": dict(found.target), "before": found.before.as_dict(), "after": found.after.as_dict()}


def show_plan(found: SlimPlan) -> None:
    """Cost before and after."""
    before, after = found.before.as_dict(), found.after.as_dict()
    shown = {key: (lambda number: f"{number:.3g}") if key == "latency_ms" else count for key in before}
    rows = [(key, shown[key](before[key]), shown[key](after[key]), share(after[key], before[key])) for key in before]
    show_table(("cost", "dense", "slim", "share"), rows)


def read_scores(path: Path) -> Scores:
    """Scores from a file. Raises: PlanError naming it."""
    from curlfx.importance import Scores

    try:
        return Scores.from_json(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"{path}: cannot read scores: {why}; make them with 'curlfx score'") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def parsed_targets(texts: list[str]) -> dict[str, Amount]:
    """``["macs=50%"]`` as a mapping. Raises: TargetError."""
    targets: dict[str, Amount] = {}
    for text in texts:
        key, separator, amount = text.partition("=")
        if not separator:
            raise TargetError(f"--target {text}: want KEY=AMOUNT, like macs=50%")
        targets[key.strip()] = amount.strip()
    return targets


def _chosen(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) < 1:
        raise TargetError(f"--round-to {text}: want 'auto' or a whole number of at least 1")
    return int(text)
