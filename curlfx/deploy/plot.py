"""A picture of a benchmark: one bar per file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curlfx.errors import ConfigError
from curlfx.files import require_writable, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curlfx.deploy.bench import BenchEntry, BenchReport

FORMATS = (".svg", ".png", ".pdf")
_WIDTH, _BAR_HEIGHT, _MARGIN = 8.0, 0.5, 1.3  # inches
_DOTS_PER_INCH = 150
_ROOM = 1.5  # of the axis, over the longest whisker: the text stands there


def check_plot(path: Path) -> None:
    """Raises: ConfigError for a format that cannot be drawn; OutputError for a file that cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"plot {path}: want a name that ends in {', '.join(FORMATS)}")
    require_writable(path)


def plot_bench(report: BenchReport, path: Path) -> None:
    """Draw the median latency of every file, whiskers from p10 to p90, the speed-up beside it, as the suffix says.

    Raises: ConfigError, OutputError as `check_plot`.
    """
    check_plot(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _MARGIN + _BAR_HEIGHT * len(report.entries)), layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), report)
    kind = path.suffix.lower().removeprefix(".")
    # Text stays text, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curlfx"}), written(path) as temporary:
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
        figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata)


def _draw(axes: Axes, report: BenchReport) -> None:
    entries, settings = report.entries, report.settings
    rows = range(len(entries))
    medians = [entry.latency_ms.median for entry in entries]
    below = [entry.latency_ms.median - entry.latency_ms.p10 for entry in entries]
    above = [entry.latency_ms.p90 - entry.latency_ms.median for entry in entries]
    axes.barh(rows, medians, xerr=(below, above), height=0.6, color="#4878a8", ecolor="#222222", capsize=3)
    for row, entry in enumerate(entries):
        axes.annotate(
            _label(entry), (entry.latency_ms.p90, row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(rows, [_plain(name) for name in _names([entry.file.path for entry in entries])])
    axes.invert_yaxis()  # the first file on top
    axes.set_xlim(0, _ROOM * max(entry.latency_ms.p90 for entry in entries))
    axes.set_xlabel("milliseconds per call: median, and p10 to p90")
    axes.set_title(
        f"onnxruntime {report.environment['versions']['onnxruntime']}, {_plain(settings.provider)}, "
        f"batch {settings.batch_size}, threads {settings.threads}\n{_plain(report.environment['cpu'])}",
        fontsize="medium",
    )
    axes.spines[["top", "right"]].set_visible(False)


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the files, with their folders where two are called the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _label(entry: BenchEntry) -> str:
    time, speedup = entry.latency_ms.median, entry.speedup
    median = f"{time:.3g} ms" if time < 1000 else f"{time:.0f} ms"
    if speedup is None:
        return median
    return f"{median}, {speedup.ratio:.2f}× ({speedup.low:.2f}–{speedup.high:.2f})"


def _plain(text: str) -> str:
    """Text that is no formula to matplotlib."""
    return text.replace("$", r"\$")
