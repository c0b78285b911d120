"""What ``--explain`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curlfx.cli.document import print_json
from curlfx.cli.tables import show_table
from curlfx.progress import duration
from curlfx.report.text import count

if TYPE_CHECKING:
    from curlfx.run.config import RunConfig


def show_forecast(config: RunConfig, *, as_json: bool) -> None:
    """Print what a job would do, and about how long it would take."""
    from curlfx.run.forecast import forecast

    found = forecast(config)
    if as_json:
        print_json(found.as_dict())
        return
    print(f"network    {found.model}: {count(found.macs)} MACs, {count(found.params)} parameters")
    print(f"data       {found.data}")
    print(f"channels   {found.channels} in {found.groups} coupling groups may go, {found.frozen} stay whatever happens")
    print(f"target     {found.target}")
    rows = [(step.name, _time(step.seconds), step.work) for step in found.steps]
    show_table(("step", "estimate", "work"), rows, text=(0, 2))
    print(f"estimate   {_time(found.seconds)} (minutes:seconds) for the steps that have one, from {found.timed}")
    print(f"directory  {found.directory} (nothing was written)")
    print(f"files      {', '.join(found.files)}")


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
