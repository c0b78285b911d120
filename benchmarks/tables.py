"""Numbers and tables as the programs print them."""

import platform
from collections.abc import Sequence
from pathlib import Path

__all__ = ["fixed", "markdown", "percent", "processor", "publish", "scientific"]


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals; empty when it was not measured."""
    return "" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; empty when it was not measured."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def scientific(value: float | None) -> str:
    """An error with two digits; empty when it was not measured."""
    return "" if value is None else f"{value:.1e}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded to the same width."""
    widths = [max(len(str(row[column])) for row in (headers, *rows)) for column in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(headers), "| " + " | ".join("-" * width for width in widths) + " |", *map(line, rows)])


def publish(text: str, path: Path | None) -> None:
    """Print what was found, and write it to ``--out`` where that is given."""
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")


def processor() -> str:
    """Name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
