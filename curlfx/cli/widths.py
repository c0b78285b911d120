"""Widths that the user gives, in a file and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curlfx.cli.network import MOST_DIGITS
from curlfx.errors import PlanError
from curlfx.run.settings import read_yaml

Width = int | float | str


def parsed_widths(file: Path | None, texts: Sequence[str]) -> dict[str, Width]:
    """Kept channels, or shares, by group or pattern; ``["layer1.*=50%"]`` stands above the file.

    Raises: ConfigError for a file that cannot be read; PlanError for anything but numbers and shares.
    """
    widths: dict[str, Width] = {}
    for name, width in ({} if file is None else read_yaml(file)).items():
        if isinstance(width, bool) or not isinstance(width, int | float | str):
            raise PlanError(f"{file}: {name}: {width!r}: want a number of channels, or a share like '50%'")
        widths[str(name)] = width
    if file is not None and not widths:
        raise PlanError(f"{file}: no widths in it: want entries like layer1.0.conv1.weight: 32")
    for text in texts:
        name, separator, amount = text.rpartition("=")
        if not separator or not name.strip() or not amount.strip():
            raise PlanError(f"--width {text}: want GROUP=N, like layer1.0.conv1.weight=32 or 'layer1.*=50%'")
        widths.pop(name.strip(), None)  # later patterns go before earlier ones
        amount = amount.strip()
        widths[name.strip()] = int(amount) if amount.isdecimal() and len(amount) <= MOST_DIGITS else amount
    return widths
