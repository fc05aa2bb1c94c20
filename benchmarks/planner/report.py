"""The report of a run: rows in a JSON file, that further runs add to, and as tables for a terminal and for the docs."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from benchmarks.planner.measuring import Instance, Row
from benchmarks.planner.peers.catalogue import PEERS

COLUMNS = ("peer", "$/h", "unmet", "objective", "above best", "valid", "bound", "CPU s", "wall s", "peak MB", "note")
SECTIONS = ("sweep", "composition", "growth")


class Report(BaseModel):
    """All rows so far, in the order of sections, instances and peers."""

    machine: str
    rows: tuple[Row, ...] = ()

    @classmethod
    def at(cls, path: Path | None) -> "Report":
        """Return the report in a file, or an empty one."""
        if path is not None and path.is_file():
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        return cls(machine=machine())

    def added(self, row: Row) -> "Report":
        """With the row; one of the same instance and peer goes."""
        kept = [old for old in self.rows if (old.instance, old.peer) != (row.instance, row.peer)]
        return self.model_copy(update={"rows": tuple(sorted([*kept, row], key=_place))})

    def write(self, path: Path) -> None:
        """Into a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def instances(self, section: str) -> list[tuple[Instance, list[Row]]]:
        """Instances of a section, each with its rows."""
        found: list[tuple[Instance, list[Row]]] = []
        for row in self.rows:
            if row.instance.section == section:
                if not found or found[-1][0] != row.instance:
                    found.append((row.instance, []))
                found[-1][1].append(row)
        return found


def machine() -> str:
    """Describe in words the machine that the figures were measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("cvxpy", "highspy", "numba", "numpy"))
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {packages}"


def title(instance: Instance) -> str:
    """Describe an instance in words."""
    what = {"sweep": "drawn", "growth": "drawn", "composition": "composed"}[instance.section]
    return f"{instance.models:,} models ({what}, seed {instance.seed}), supply use {instance.supply_use:g}"


def cells(row: Row, best: float | None) -> tuple[str, ...]:
    """Return the columns of a row. `above best` compares objectives with the best valid plan of the instance."""
    above = None if row.objective is None or not best or not row.valid else row.objective / best - 1
    return (
        row.peer,
        _figure(row.cost_per_hour),
        "" if row.unmet_share is None else f"{row.unmet_share:.3%} ({row.unmet_models} models)",
        _figure(row.objective),
        "" if above is None else f"{above:.2%}",
        "" if row.valid is None else "yes" if row.valid else "no: " + "; ".join(row.broken[:2]),
        _figure(row.bound),
        _figure(row.cpu_seconds),
        _figure(row.wall_seconds),
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        row.note if row.status in ("done", "invalid") else f"{row.status}: {row.note}",
    )


def best_of(rows: Sequence[Row]) -> float | None:
    """Return the lowest objective of a valid plan."""
    return min((row.objective for row in rows if row.valid and row.objective is not None), default=None)


def show(report: Report, console: Console) -> None:
    """All tables, in a terminal."""
    for section in SECTIONS:
        for instance, rows in report.instances(section):
            table = Table(title=title(instance))
            for column in COLUMNS:
                table.add_column(column, justify="left" if column in ("peer", "valid", "note") else "right")
            for row in rows:
                table.add_row(*cells(row, best_of(rows)))
            console.print(table)


def markdown(report: Report, section: str) -> str:
    """Return the tables of a section for the docs, with the pictures next to them."""
    lines = [f"Machine: {report.machine}.", "", *_pictures(section)]
    for instance, rows in report.instances(section):
        lines += [f"**{title(instance)}**", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(cells(row, best_of(rows))).replace("\n", " ") + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _pictures(section: str) -> Iterator[str]:
    yield f"![{section}](images/planner/{section}.svg)"
    yield ""


def rewritten(text: str, report: Report) -> str:
    """Return a page with new blocks between `<!-- measured: SECTION -->` and `<!-- end -->`.

    They are those of the report if it has rows of the section.
    """
    for section in SECTIONS:
        if report.instances(section):
            begin, end = f"<!-- measured: {section} -->", "<!-- end -->"
            before, rest = text.split(begin, 1)
            _, after = rest.split(end, 1)
            text = f"{before}{begin}\n\n{markdown(report, section)}\n{end}{after}"
    return text


def _figure(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.4g}"


def _place(row: Row) -> tuple[object, ...]:
    order = list(PEERS)
    instance = row.instance
    return (
        SECTIONS.index(instance.section),
        instance.models,
        instance.seed,
        instance.supply_use,
        order.index(row.peer) if row.peer in order else len(order),
    )
