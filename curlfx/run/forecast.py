"""What a job would do and about what it would take, found without doing it: nothing is written, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curlfx.cost import CostModel
from curlfx.planning.target import parse_targets
from curlfx.run.config import PUBLISHED, RunConfig
from curlfx.run.deployment import ONNX_FILES
from curlfx.run.directory import CHECKPOINTS, CONFIG, LOG, PAGE, STATE, SUMMARY, planned_path
from curlfx.run.int8 import INT8
from curlfx.run.pace import REPEATS, Pace, measure_pace
from curlfx.run.saved import MANIFEST, PLAN, PROGRAM, WEIGHTS
from curlfx.run.search import SEARCH
from curlfx.run.subject import Subject, examine, load_subject
from curlfx.run.threads import threads
from curlfx.sources.expansion import VERSIONS

PASSES = {"kl": 256, "kl-fast": 12, "taylor": 3, "relevance": 9, "relevance-inner": 9}
"""Forward passes over the proxy images that scoring takes at most, or about, for criteria that look at images."""


@dataclass(frozen=True)
class Step:
    """One part of a job.

    Attributes:
        name: Stage or stages.
        work: What is done, in words.
        seconds: An estimate; None where there is none.
    """

    name: str
    work: str
    seconds: float | None = None


@dataclass(frozen=True)
class Forecast:
    """What a job would do.

    Attributes:
        model: MODEL.
        macs: Multiply-adds of the dense network for one image.
        params: Its parameters.
        data: Where the images are from, and how many there are.
        groups: Coupling groups.
        channels: Coupled channels in them, which may go.
        frozen: Channels that stay, whatever is asked for.
        target: What is to be reached, in words.
        steps: What is done, in order.
        directory: Where results would go.
        files: What would be written there.
        timed: How the estimates were made.
    """

    model: str
    macs: int
    params: int
    data: str
    groups: int
    channels: int
    frozen: int
    target: str
    steps: tuple[Step, ...]
    directory: Path
    files: tuple[str, ...]
    timed: str

    @property
    def seconds(self) -> float:
        """An estimate for those steps that have one."""
        return sum(step.seconds for step in self.steps if step.seconds is not None)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "directory": str(self.directory), "seconds": self.seconds}


def forecast(config: RunConfig) -> Forecast:
    """Load and check what ``config`` names, as `curlfx.run` does first; time a few passes; do nothing else.

    Published weights are not downloaded: times and sizes do not depend on them.
    Raises: as `curlfx.run` before it writes anything; OutputError where it could not make its directory.
    """
    directory = planned_path(config.out, config.directory_name)
    light = config.model_copy(update={"weights": None}) if config.weights == PUBLISHED else config
    with threads(config.threads):
        subject = load_subject(light)
        traced, coupling = examine(light, subject)
        cost = CostModel(traced, coupling).dense
        pace = measure_pace(subject.model, subject.example, cost.macs, config.train.batch_size, subject.device)
    target = config.target.as_mapping()
    bounds = parse_targets(
        {name: one for name, one in target.items() if name != "latency_ms"} or {"macs": "100%"}, cost
    )
    share = min(
        (float(one.limit / one.dense) for one in bounds if one.quantity in ("macs", "padded_macs")), default=1.0
    )
    data = subject.data
    return Forecast(
        model=config.model,
        macs=cost.macs,
        params=cost.params,
        data=f"{data.size('train')} training and {data.size('test')} test images of {data.num_classes} classes "
        f"from {data.name}, {' x '.join(map(str, data.shape))}",
        groups=len(coupling.groups),
        channels=coupling.total,
        frozen=sum(pin.width for pin in coupling.frozen),
        target=", ".join(f"{name} {amount}" for name, amount in target.items()),
        steps=tuple(_steps(config, subject, coupling.total, share, pace)),
        directory=directory,
        files=_files(config),
        timed=f"multiply-adds, and the time of {pace.images} images on {subject.device}, taken {REPEATS} times",
    )


def _steps(config: RunConfig, subject: Subject, channels: int, share: float, pace: Pace) -> Iterator[Step]:
    """The steps of a job; ``share`` of the dense network's MACs are left after slimming."""
    train, test = subject.data.size("train"), subject.data.size("test")
    judged = test * pace.forward
    if config.trains_first:
        gradual = ", channels go meanwhile" if config.gradual.interval != 0 else ""
        work = _training(config.train.epochs, train, config.train.batch_size)
        yield Step("train", f"the dense network: {work}{gradual}", config.train.epochs * (train * pace.step + judged))
    yield Step("dense", f"accuracy on {test} test images", judged)
    yield _scoring(config, channels, min(train, config.proxy_images), pace)
    yield from _planning(config)
    yield Step("slim", "delete channels, compare with the gated network, judge", judged * share)
    yield from _recovery(config, train, judged, share, pace)
    yield Step("accuracy", f"of the slim network on {test} test images", judged * share)
    yield Step(
        "export, verify", "ONNX files" + (", also in 8 bits" if config.export.int8 else "") + ", compared with torch"
    )
    yield _measuring(config, share, pace)


def _scoring(config: RunConfig, channels: int, images: int, pace: Pace) -> Step:
    if config.gradual.interval != 0:
        return Step("score", f"{config.importance}, within the training")
    passes = channels if config.importance == "kl-exact" else min(PASSES.get(config.importance, 0), max(channels, 12))
    seen = f" on {images} training images, at most {passes} passes" if passes else ""
    times = f", {config.iterative_steps} times" if config.iterative_steps > 1 else ""
    seconds = passes * images * pace.forward * config.iterative_steps
    return Step("score", f"{config.importance}, {channels} channels{seen}{times}", seconds)


def _planning(config: RunConfig) -> Iterator[Step]:
    if config.search.enabled:
        wanted = config.search
        yield Step(
            "search", f"a supernet for {wanted.train.epochs} epochs, {wanted.generations} generations of networks"
        )
    if config.target.latency_ms is not None:
        yield Step(
            "latency", f"{config.latency_probes} narrow networks are measured, then plans until one meets the target"
        )
    yield Step("plan", f"allocation {config.allocation or 'by the target'}, widths rounded to {config.round_to}", 0.0)


def _recovery(config: RunConfig, train: int, judged: float, share: float, pace: Pace) -> Iterator[Step]:
    wanted = config.recovery
    if wanted.recalibrate_batches:
        images = wanted.recalibrate_batches * wanted.batch_size
        yield Step("recalibrate", f"BatchNorm on {images} images", (images * pace.forward + judged) * share)
    if wanted.overparam.epochs:
        enlarged = wanted.overparam
        yield Step("overparam", f"the enlarged network: {_training(enlarged.epochs, train, enlarged.batch_size)}")
    if wanted.epochs:
        images = train * (len(VERSIONS) if wanted.expand else 1)
        teacher = pace.forward if wanted.distillation else 0.0
        work = _training(wanted.epochs, images, wanted.batch_size)
        taught = ", under the dense one" if wanted.distillation else ""
        seconds = wanted.epochs * (images * (pace.step * share + teacher) + judged * share)
        yield Step("recover", f"the slim network: {work}{taught}", seconds)
    if wanted.refine.epochs:
        images = train * (len(VERSIONS) if wanted.refine.expand else 1)
        work = _training(wanted.refine.epochs, images, wanted.batch_size)
        seconds = images * pace.forward + wanted.refine.epochs * (images * pace.step + judged) * share
        yield Step("refine", f"labels and slim network: {work}", seconds)


def _measuring(config: RunConfig, share: float, pace: Pace) -> Step:
    asked = config.bench
    calls = asked.rounds * asked.runs + asked.warmup
    seconds = calls * asked.batch_size * pace.forward * (1 + share)
    seconds = seconds if asked.max_seconds is None else min(seconds, asked.max_seconds)
    work = f"dense and slim in turn, {asked.rounds} rounds of {asked.runs} runs, batch {asked.batch_size}"
    return Step("bench", f"{work}, {asked.provider}, threads {asked.threads}", seconds)


def _training(epochs: int, images: int, batch: int) -> str:
    steps = -(-images // batch)
    return f"{epochs} epochs of {steps} steps, {epochs * steps} in all"


def _files(config: RunConfig) -> tuple[str, ...]:
    optional = [INT8] * config.export.int8 + [SEARCH] * config.search.enabled
    network = (PLAN, "layers.csv", WEIGHTS, PROGRAM, MANIFEST, *ONNX_FILES.values(), *optional)
    return (CONFIG, *network, SUMMARY, PAGE, STATE, LOG, f"{CHECKPOINTS}/")
