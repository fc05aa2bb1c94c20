"""The pictures of a report, one for each section, as SVG. Needs matplotlib (`pip install 'ipnext[bench]'`)."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.planner.measuring import Row
from benchmarks.planner.peers.catalogue import PEERS
from benchmarks.planner.report import SECTIONS, Report, best_of

COLOURS = dict(
    zip(PEERS, ("#1b6ca8", "#d1495b", "#4f9d69", "#edae49", "#8d6a9f", "#6c757d", "#00798c", "#a5a58d"), strict=True)
)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ipnext",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(report: Report, folder: Path) -> list[Path]:
    """Write the picture of every section that has rows; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for section in SECTIONS:
        if report.instances(section):
            with mpl.rc_context(STYLE):
                figure = {"sweep": _sweep, "composition": _sweep, "growth": _growth}[section](report, section)
            path = folder / f"{section}.svg"
            figure.savefig(path, format="svg", metadata={"Date": None})
            drawn.append(path)
    return drawn


def _sweep(report: Report, section: str) -> Figure:
    """Objective above the best plan, unmet demand and CPU time against supply use."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    best = {instance.model_dump_json(): best_of(rows) for instance, rows in report.instances(section)}

    def above(row: Row) -> float | None:
        lowest = best[row.instance.model_dump_json()]
        return None if not row.valid or row.objective is None or not lowest else 100 * (row.objective / lowest - 1)

    def unmet(row: Row) -> float | None:
        return None if row.unmet_share is None or not row.valid else 100 * row.unmet_share

    _lines(left, report, section, above, lambda row: row.instance.supply_use)
    _lines(middle, report, section, unmet, lambda row: row.instance.supply_use)
    _lines(right, report, section, lambda row: row.cpu_seconds, lambda row: row.instance.supply_use)
    left.set(xlabel="supply use", ylabel="objective above the best plan, %", yscale="symlog")
    middle.set(xlabel="supply use", ylabel="unmet demand, %")
    right.set(xlabel="supply use", ylabel="CPU s", yscale="log")
    figure.legend(*right.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=5)
    return figure


def _growth(report: Report, section: str) -> Figure:
    """Time and memory against the number of models, both logarithmic."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, report, section, lambda row: row.cpu_seconds, lambda row: row.instance.models)
    _lines(right, report, section, lambda row: row.peak_mb, lambda row: row.instance.models)
    left.set(xlabel="models", ylabel="CPU s", xscale="log", yscale="log")
    right.set(xlabel="models", ylabel="peak memory, MB", xscale="log", yscale="log")
    left.legend(fontsize=7)
    return figure


def _lines(
    axes: Any, report: Report, section: str, value: Callable[[Row], float | None], at: Callable[[Row], float]
) -> None:
    """One line a peer, through its rows that finished.

    Outside the growth, one for each number of models (dashed: not the most).
    """
    rows = [row for _, rows in report.instances(section) for row in rows if row.status in ("done", "relaxation")]
    sizes = [None] if section == "growth" else sorted({row.instance.models for row in rows}, reverse=True)
    for peer, (order, size) in product(PEERS, enumerate(sizes)):
        own = [row for row in rows if row.peer == peer and size in {None, row.instance.models}]
        points = sorted((at(row), y) for row in own if (y := value(row)) is not None)
        if points:
            name = peer if len(sizes) == 1 or size is None else f"{peer}, {size:,} models"
            line = {"lw": 1.2, "ls": "--" if order else "-", "marker": "x" if order else "o", "ms": 4 if order else 3}
            axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[peer], **line)
