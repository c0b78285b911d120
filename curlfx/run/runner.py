"""The whole job: its stages in order, each recorded when finished, so that a killed run goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curlfx.errors import ConfigError, VerificationError
from curlfx.progress import Progress
from curlfx.recovery import Processes, joined
from curlfx.report.text import verdict
from curlfx.run import compilation, deployment, reporting, scoring, training
from curlfx.run.config import RunConfig
from curlfx.run.directory import RunDirectory, planned_path
from curlfx.run.job import Job, Say
from curlfx.run.reporting import read_summary
from curlfx.run.settings import make_config
from curlfx.run.subject import examine, load_subject
from curlfx.run.threads import threads
from curlfx.run.together import Opened, do_stage, open_together

Stage = Callable[[Job], dict[str, Any]]

STAGES: Mapping[str, Stage] = {
    "train": training.train,
    "dense": training.judge_dense,
    "trace": compilation.trace,
    "couple": compilation.couple,
    "score": scoring.score,
    "plan": scoring.plan,
    "slim": compilation.slim,
    "unrecovered": training.judge_unrecovered,
    "recalibrate": training.recalibrate,
    "overparam": training.overparam,
    "recover": training.recover,
    "refine": training.refine,
    "accuracy": training.judge_slim,
    "export": deployment.export,
    "verify": deployment.verify,
    "bench": deployment.bench,
    "report": reporting.report,
}
"""The stages by name, in the order of `curlfx.run.directory.STAGES`.

Every stage takes the job and gives a JSON result; what later stages need from it is that result, or a file.
"""


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        directory: The run directory.
        summary: ``summary.json``.
        leads: Whether this process wrote them: the only one, or the first of several.
    """

    directory: Path
    summary: Mapping[str, Any]
    leads: bool = True

    @property
    def passed(self) -> bool:
        """Whether every verification passed."""
        return bool(self.summary["verification"]["passed"])


def run(
    config: RunConfig | Mapping[str, Any] | None = None, *, progress: Progress | None = None, say: Say = lambda _: None
) -> RunResult:
    """Do the whole job: train if there are no weights, compile, recover, export, verify, measure, report.

    Processes that ``torchrun`` or ``accelerate launch`` started share the trainings; the first one does all else.

    Args:
        config: What to do; a mapping is checked first; none is the embedded default (scikit-learn's digits).
        progress: Who sees the steps of long stages.
        say: Takes lines of text for people.

    Raises: UsageError and its kinds for bad input, before anything is written, except for images that only a later
        stage reads; OutputError when it cannot be written; BudgetError when the target cannot be reached;
        VerificationError when networks that must agree do not (what was found is in the run directory).
    """
    config = config if isinstance(config, RunConfig) else make_config(config or {})
    with joined() as group:
        progress, say = (progress, say) if group.leads else (None, lambda _: None)
        if config.resume is not None:
            return _resumed(config, group, progress, say)
        group.on_leader(lambda: planned_path(config.out, config.directory_name))  # a folder in use is refused at once
        with threads(config.threads):
            subject = load_subject(config)

            def create() -> Opened:
                examine(config, subject)
                settings = config.resolved()
                return RunDirectory.create(config.out, config.directory_name, settings), settings

            with open_together(group, create) as (directory, _, path):
                return _finish(Job.start(config, subject, directory, progress, say), group, path)


def _resumed(request: RunConfig, group: Processes, progress: Progress | None, say: Say) -> RunResult:
    """Go on with an earlier run as it was configured. Raises: ConfigError for any other key beside ``resume``."""
    folder, others = request.resume, sorted(request.model_fields_set - {"resume"})
    if others or folder is None:
        raise ConfigError(f"resume={folder} goes on with that run's own settings; leave out {', '.join(others)}")
    with open_together(group, lambda: RunDirectory.reopen(folder)) as (directory, settings, path):
        config = make_config(settings)
        if directory.done.keys() >= STAGES.keys():
            return _result(group, path)
        with threads(config.threads):
            return _finish(Job.start(config, load_subject(config), directory, progress, say), group, path)


def _finish(job: Job, group: Processes, path: Path) -> RunResult:
    directory = job.directory
    job.say(f"run directory {path}")
    if group.count > 1:
        job.say(f"{group.count} processes train together")
    job.say(_what(job))
    try:
        for name, stage in STAGES.items():
            if name in directory.done:
                continue
            start = time.perf_counter()
            found = do_stage(group, name, stage, job)
            directory.record(name, found, time.perf_counter() - start)
            job.log(f"{name}: done in {directory.seconds[name]:.2f} s")
    except BaseException as error:
        error.add_note(f"to go on with this run: curlfx run resume={path}")
        raise
    return _result(group, path)


def _result(group: Processes, path: Path) -> RunResult:
    """The finished run. Raises: VerificationError when one of its checks failed."""
    result = RunResult(path, group.on_leader(lambda: read_summary(path)), group.leads)
    if not result.passed:
        raise VerificationError(f"verification {verdict(result.summary)}; see {path / 'report.html'}")
    return result


def _what(job: Job) -> str:
    config, data = job.config, job.subject.data
    images = f"{data.size('train')} training and {data.size('test')} test images of {data.name}"
    target = ", ".join(f"{key} {amount}" for key, amount in config.target.as_mapping().items())
    return f"{config.model}, {images}, target {target}, importance {config.importance}, seed {config.seed}"
