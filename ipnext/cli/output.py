"""How answers are written: tables for people, JSON and YAML for programs. Messages go to stderr."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ipnext.cli.terminal import escape_controls, escape_quoted, has_controls
from ipnext.model.lifecycle.changes.change import Change

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))

_SMALL, _SMALLEST = 0.1, 1e-6
"""Figures below the first one are shown with two digits, and the others that are no zero as below the second one."""

UNBOUNDED_COLUMNS = 250
"""Width if the answer goes into a file or a pipe: nothing is cut."""


class Form(StrEnum):
    """Form of an answer."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Form, typer.Option("--output", "-o", help="Form of the answer.")]


def write(value: object, form: Form, table: Callable[[], Table | Iterable[Table | str]]) -> None:
    """Write an answer to stdout. `table` makes the form for people."""
    if form is Form.JSON:
        typer.echo(escape_quoted(json.dumps(plain(value), indent=2, ensure_ascii=False)))
    elif form is Form.YAML:
        typer.echo(
            escape_quoted(yaml.dump(plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)), nl=False
        )
    else:
        made = table()
        console = _console()
        for piece in [made] if isinstance(made, Table) else made:
            if isinstance(piece, str):  # a line that somebody copies or pipes: the terminal wraps it, we don't
                console.print(escape_controls(piece), markup=False, highlight=False, soft_wrap=True)
            else:
                console.print(piece, markup=False, highlight=False)


class _Dumper(yaml.SafeDumper):
    """Writes texts with control characters in double quotes, in which they can be escaped."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if has_controls(text) else None)


_Dumper.add_representer(str, _represent_text)


def say(text: str) -> None:
    """Write a message next to the answer, to standard error."""
    typer.echo(escape_controls(text), err=True)


def plain(value: object) -> Any:
    """Return a value as JSON data, in the API's own spelling."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def rows(title: str, heads: Sequence[str], lines: Iterable[Sequence[object]]) -> Table:
    """Make a table without frames: easy to read, to copy and to cut."""
    table = Table(
        title=escape_controls(title) or None, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for head in heads:
        table.add_column(head, overflow="fold")
    for line in lines:
        table.add_row(*(Text("-" if cell is None or cell == "" else escape_controls(str(cell))) for cell in line))
    return table


def age(at: datetime) -> str:
    """How long ago, short: 5s, 12m, 3h, 4d."""
    return duration((datetime.now(UTC) - at).total_seconds())


def duration(seconds: float) -> str:
    """How long, short: 5s, 12m, 3h, 4d."""
    whole = max(0, int(seconds))
    for unit, size in _UNITS:
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def exact_duration(seconds: float) -> str:
    """How long, in the largest unit of which it is a whole number: 90s, 15m, 2h."""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds % size == 0), ("s", 1))
    return f"{seconds / size:g}{unit}"


def number(value: float) -> str:
    """At most two digits after the point, or two digits of what is small; none if they are zero."""
    size = abs(value)
    if 0 < size < _SMALLEST:
        return "<0.000001" if value > 0 else ">-0.000001"
    places = 1 - math.floor(math.log10(size)) if 0 < size < _SMALL else 2
    return f"{value:,.{places}f}".rstrip("0").rstrip(".")


def change_line(change: Change) -> str:
    """One change in one line."""
    target = "" if change.generation is None else f" (generation {change.generation})"
    why = ": ".join(part for part in (change.reason.value if change.reason else "", change.message) if part)
    return f"{change.kind.value} of {change.model}{target}: {change.state.value}{f', {why}' if why else ''}"


def _console() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else UNBOUNDED_COLUMNS, soft_wrap=False)
