"""Verification of what a finished run left, from its files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curlfx.errors import OutputError, VerificationError
from curlfx.report.text import verdict
from curlfx.run.checksums import FileReport, compare
from curlfx.run.deployment import ONNX_FILES
from curlfx.run.directory import STATE, looked_at
from curlfx.run.job import Job
from curlfx.run.reporting import read_summary
from curlfx.run.saved import MANIFEST, load
from curlfx.run.settings import make_config
from curlfx.run.subject import load_subject
from curlfx.run.verify import OTHER_BATCH, VerifyReport, graph_vs_slim, verify


@dataclass(frozen=True)
class Record:
    """What the summary of a finished run says, beside what is there.

    Attributes:
        files: The files of the run against their checksums; None where an earlier curlfx wrote none.
        verdict: What was verified when the run was made.
        passed: Whether that passed.
    """

    files: FileReport | None
    verdict: str
    passed: bool

    @property
    def good(self) -> bool:
        """Whether the files are as they were, as far as that is known, and the verification passed."""
        return self.passed and (self.files is None or self.files.passed)

    def require(self) -> None:
        """Insist on both. Raises: CheckError naming every file; VerificationError."""
        if self.files is not None:
            self.files.require()
        if not self.passed:
            raise VerificationError(f"the verification on record {self.verdict}")


def check_record(folder: Path) -> Record | None:
    """Compare the files of a finished run with their checksums. No file of it is loaded, nothing is written.

    Returns: None where there is no summary yet: of a run that is not done, and of a network that `curlfx.save` wrote.
    Raises: OutputError when the folder is no run directory, or its summary cannot be read.
    """
    if not (folder / STATE).is_file() and (folder / MANIFEST).is_file():
        return None
    with looked_at(folder) as (directory, _):
        if "report" not in directory.done:
            return None
        summary = read_summary(folder)
        recorded = summary.get("files")
        files = None if recorded is None else compare(folder, recorded)
        return Record(files, verdict(summary), bool(summary["verification"]["passed"]))


def recheck(folder: Path) -> VerifyReport:
    """Load the network, plan, weights, ONNX files and graph of a run again, and compare them. Nothing is written.

    Of a folder that `curlfx.save` wrote, the network from its factory is compared with the saved graph.

    Raises: OutputError when the folder is no run directory, or its run has not come to the export yet; UsageError when
        the network or the data of the run can no longer be loaded, or a file is not the one that was saved.
    """
    if not (folder / STATE).is_file() and (folder / MANIFEST).is_file():
        return _recheck_saved(folder)
    with looked_at(folder) as (directory, settings):
        if "export" not in directory.done:
            raise OutputError(
                f"{folder}: this run has not exported anything yet; go on with curlfx run resume={folder}"
            )
        config = make_config(settings)
        job = Job(config, load_subject(config), directory, None, lambda _: None)
        files = {name: job.file(file) for name, file in ONNX_FILES.items()}
        images = job.test_images(OTHER_BATCH)
        found = verify(job.traced, job.plan, images, coupling=job.coupling, slim=job.slim, files=files)
        return VerifyReport((*found.checks, graph_vs_slim(job.slim, load(folder, graph=True))))


def _recheck_saved(folder: Path) -> VerifyReport:
    return VerifyReport((graph_vs_slim(load(folder), load(folder, graph=True)),))
