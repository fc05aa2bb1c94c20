"""Input and output of the commands: reading files, writing results, and errors as one line and an exit status."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ipnext.cli.output import UNBOUNDED_COLUMNS, Form, rows
from ipnext.cli.output import write as write_answer
from ipnext.errors import Infeasible, InvalidInput, IPnextError
from ipnext.model.value import Value

__all__ = ["Form", "Output", "rows", "write_answer"]

ProblemFile = Annotated[Path, typer.Argument(metavar="PROBLEM", help="problem.json")]
ProblemOption = Annotated[Path, typer.Option("--problem", metavar="PROBLEM", help="problem.json")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json")]
Target = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE|json", help="Write the document here; else, or with json, to stdout."),
]
Output = Annotated[Form, typer.Option("--output", "-o", help="Form of the answer.")]

STANDARD_OUTPUT = Path("json")
"""Value of `-o json` if `-o` otherwise names a file: the document is JSON in any case."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an IPnext error into one line on standard error and its exit status."""
    try:
        yield
    except Infeasible as error:
        fail(f"infeasible: {error.message}", error.exit_status)
    except IPnextError as error:
        fail(error.message, error.exit_status)


def fail(message: str, status: int) -> NoReturn:
    """End the command with one line on standard error."""
    typer.echo("error: " + " ".join(message.split()), err=True)
    raise typer.Exit(status)


@contextmanager
def solver_silent() -> Iterator[None]:
    """Discard file descriptor 1, because HiGHS writes a banner there, whatever its options are."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


READABLE_BYTES = 20_000_000
"""A document that is larger than this on one line stays on one line: indented, it would be three times as large."""


def document(value: Value) -> str:
    """Return the JSON text of a document, indented if it is small enough to read."""
    short = value.model_dump_json(by_alias=True)
    return (short if len(short) > READABLE_BYTES else value.model_dump_json(by_alias=True, indent=2)) + "\n"


def write_document(value: Value, path: Path | None) -> None:
    """Write the document, atomically to a file, or to standard output."""
    text = document(value)
    if path in (None, STANDARD_OUTPUT):
        typer.echo(text, nl=False)
    else:
        write_file(text, path, "--output")


def write_file(text: str, path: Path, option: str) -> None:
    """Write a file atomically. Raises InvalidInput that names the option."""
    try:
        _replace(path, text)
    except OSError as error:
        msg = f"{option}: cannot write {path}: {error.strerror or error}"
        raise InvalidInput(msg, field=option, value=str(path), allowed=["a file that can be written"]) from None


def _replace(path: Path, text: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(0, "is a directory")
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    written = Path(file.name)
    try:
        written.chmod(0o644)
        written.replace(path)
    except OSError:
        written.unlink(missing_ok=True)
        raise


def beside(table: Table | str) -> None:
    """Print a table or text for the user to standard error."""
    console = Console(file=sys.stderr, markup=False, highlight=False)
    if not sys.stderr.isatty():
        console.width = UNBOUNDED_COLUMNS
    console.print(table)


def facts(title: str, lines: Sequence[tuple[str, str]]) -> Table:
    """Return a table of names and figures."""
    table = rows(title, ["", ""], lines)
    table.show_header = False
    return table


MOST_ROWS = 30
"""Of a table that a whole fleet fills; the document has them all."""


def render_titled(title: str, heads: Sequence[str], lines: Sequence[Sequence[object]]) -> Iterator[Table | str]:
    """Yield a table below its title, which may be wider; if there are many lines, only the first."""
    many = len(lines) > MOST_ROWS
    yield f"{title}, {MOST_ROWS} of {len(lines)} rows" if many else title
    yield rows("", heads, lines[:MOST_ROWS])
