"""The pictures of a report, as SVG. Needs matplotlib (`pip install 'ipnext[bench]'`)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.planner.plots import STYLE
from benchmarks.serving.report import Report, Row
from benchmarks.serving.targets import at_equal_p99, ours_beside, p50, ratio

OURS, THEIRS = "#1b6ca8", "#d1495b"


def draw(report: Report, folder: Path) -> list[Path]:
    """Write the picture of each section that has rows; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for name, figure_of in (("peers", _latency), ("throughput", _throughput)):
        with mpl.rc_context(STYLE):
            figure = figure_of(report)
            if figure is not None:
                drawn.append(folder / f"{name}.svg")
                figure.savefig(drawn[-1], format="svg", metadata={"Date": None})
    return drawn


def _latency(report: Report) -> Figure | None:
    """p50 over the eager forward: a bar for each peer, ours of the same turns beside it; one panel a batch size."""
    rows = [row for row in report.of("peers") if row.own and not row.subject.startswith("IPnext")]
    batches = sorted({row.batch for row in rows})
    if not batches:
        return None
    figure = Figure(figsize=(3.6 * len(batches), 3.6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        pairs = [(row, ours_beside(report, row)) for row in rows if row.batch == batch]
        theirs = [ratio(row, p50) or 0.0 for row, _ in pairs]
        ours = [(ratio(own, p50) or 0.0) if own else 0.0 for _, own in pairs]
        _bars(axes, [_label(row) for row, _ in pairs], theirs, ours)
        axes.axvline(1, color="black", lw=0.8, ls=":")
        axes.set(title=f"batch {batch}", xlabel="p50 over the eager forward", xscale="log")
    return figure


def _throughput(report: Report) -> Figure | None:
    """Answers a second over those of the eager forward: each peer, and ours by the rule of equal p99."""
    rows = [row for row in report.of("throughput") if row.own and row.beside and not row.subject.startswith("IPnext")]
    batches = sorted({row.batch for row in rows})
    if not batches:
        return None
    figure = Figure(figsize=(5.2 * len(batches), 3.6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        chosen = [row for row in rows if row.batch == batch]
        ours = [at_equal_p99(report, row) for row in chosen]
        _bars(
            axes,
            [_label(row) for row in chosen],
            list(map(_share, chosen)),
            [_share(row) if row else 0.0 for row in ours],
        )
        axes.axvline(1, color="black", lw=0.8, ls=":")
        axes.set(title=f"batch {batch}", xlabel="QPS over one eager forward after the other")
    return figure


def _share(row: Row) -> float:
    return row.own.qps / row.baseline.qps if row.own and row.baseline else 0.0


def _label(row: Row) -> str:
    return f"{row.subject}\n{row.form}"


def _bars(axes: Axes, labels: Sequence[str], theirs: Sequence[float], ours: Sequence[float]) -> None:
    places = list(range(len(labels)))
    axes.barh([place - 0.2 for place in places], theirs, height=0.38, color=THEIRS, label="peer")
    axes.barh([place + 0.2 for place in places], ours, height=0.38, color=OURS, label="IPnext, same turns")
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=7)
