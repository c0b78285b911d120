"""The command ``search``: a whole job whose widths are searched for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curlfx.cli.job import AsJson, Preset, Settings, finish, show_result, split_arguments
from curlfx.cli.tables import show_table
from curlfx.errors import UsageError
from curlfx.files import read_json

if TYPE_CHECKING:
    from curlfx.run.config import RunConfig


def search(
    job: Settings = None,
    preset: Preset = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="recover uniform widths and the best random network as well")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do the whole job with widths that are searched for.

    A supernet is trained stage by stage, and an evolution finds the best widths under the target. The settings are
    those of run; those of the search begin with search, like search.generations=10 or search.train.epochs=5.

    For example:

        curlfx search --preset fast

        curlfx search model=curlfx:resnet20 weights=FILE data=cifar10:DIR target.macs=50% --controls
    """
    from curlfx.run.settings import load_config

    file, overrides = split_arguments(job or [], preset)
    resumes = any(override.startswith("resume=") for override in overrides)
    own = [] if resumes else ["search.enabled=true", *(["search.controls=true"] if controls else [])]
    config = load_config(file, [*own, *overrides])
    from curlfx.recovery import joined
    from curlfx.run.search import SEARCH

    with joined() as group:  # of several processes the first one alone has the folder, and its lock
        group.on_leader(lambda: _check(config, controls=controls))
        result = finish(config)
    show_result(result, as_json=as_json)
    if result.leads and not as_json:
        show_search(result.directory / SEARCH, result.summary)


def _check(config: RunConfig, *, controls: bool) -> None:
    """Refuse what would not search. Raises: UsageError; OutputError for a folder that is no run directory."""
    from curlfx.run.directory import RunDirectory
    from curlfx.run.settings import make_config

    folder = config.resume
    if folder is None:
        if not config.search.enabled:
            raise UsageError("search.enabled=false: this command searches for widths; leave it out, or use curlfx run")
        if controls and not config.search.controls:
            raise UsageError("--controls and search.controls=false: leave out one of the two")
        return
    if controls:
        raise UsageError(f"--controls: resume={folder} goes on with that run's own settings; leave it out")
    directory, settings = RunDirectory.reopen(folder)
    directory.close()
    if not make_config(settings).search.enabled:
        raise UsageError(f"resume={folder}: that run does not search for widths; use curlfx run resume={folder}")


def show_search(file: Path, summary: Any) -> None:
    """What was found beside its controls, as a table."""
    record = read_json(file)
    networks = {"found": {**record["best"], "accuracy": summary["slim"]["accuracy"]}, **record["controls"]}
    rows = [
        (name, f"{one['accuracy']:.4f}", f"{one['value']:.5f}", f"{one['cost']['macs'] / summary['dense']['macs']:.1%}")
        for name, one in networks.items()
    ]
    show_table(("widths", "accuracy", "proxy", "MACs"), rows)
    print(f"{record['looked_at']} networks compared; the front is in {file}")
