"""The audit on the command line: `audit list`, `verify`, `export`, `head`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, rows, say, write
from ipnext.cli.session import client_of
from ipnext.cli.terminal import escape_quoted
from ipnext.errors import EXIT_FAILURE, InvalidInput
from ipnext.model.access.audit import AuditEntry, AuditHead
from ipnext.model.access.audit_chain import Verification, read_anchors, read_entries, verify
from ipnext.model.value import canonical_json

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LENGTH = re.compile(r"([1-9][0-9]{0,4})([mhdw])")
_TIMES = ("90m", "6h", "30d", "2w", "2026-12-01", "2026-12-01T06:00")

After = Annotated[int, typer.Option("--after", min=0, help="Begin behind the entry of this sequence.")]


def list_entries(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    who: Annotated[str | None, typer.Option(help="Only of this principal: its id or its name.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this action, such as models.publish; models.* is all of models.")
    ] = None,
    about: Annotated[str | None, typer.Option("--object", help="Only about the object or model of this name.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only from then on: a UTC time, or how long ago, such as 6h.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="Without a limit.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """List entries, the newest first."""
    begin = None if since is None else time_of(since, datetime.now(UTC))
    found = client_of(context).audit(who=who, action=action, about=about, since=begin, limit=None if every else limit)
    write(found, output, lambda: entries_table(found))
    if found.next is not None:
        say(f"there are more than {limit}: --all lists them all, --limit so many")


def verify_entries(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="An export; without it the entries are read from the API.", show_default=False
        ),
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option("--anchor", metavar="FILE", help="Heads that `ipnext audit head -o json` printed earlier."),
    ] = None,
    after: After = 0,
    output: Output = Form.TABLE,
) -> None:
    """Verify the chain on this machine. Exit status 1 if an entry was changed, removed, inserted or moved.

    A tail that was cut off, or a chain that was made again from some entry on, is found by an anchor only.
    """
    anchors = () if anchor is None else _anchors(anchor)
    entries = client_of(context).export_audit(after=after) if file is None else _entries(file)
    found = verify(entries, after=after, anchors=anchors)
    write(found, output, lambda: [_format_verification(found, anchors)])
    if found.fault is not None:
        raise typer.Exit(EXIT_FAILURE)


def export(context: typer.Context, after: After = 0) -> None:
    """Write entries to stdout, one JSON object a line, in the order of the chain."""
    for entry in client_of(context).export_audit(after=after):
        typer.echo(escape_quoted(canonical_json(entry)))


def head(context: typer.Context, output: Output = Form.TABLE) -> None:
    """Print sequence and hash of the newest entry. Kept elsewhere, it is the anchor of later verifications."""
    found = client_of(context).audit_head()
    write(found, output, lambda: rows("", ("sequence", "hash"), [(found.sequence, found.hash)]))


def entries_table(entries: Iterable[AuditEntry]) -> Table:
    """One line for each entry."""
    lines = (
        (
            entry.sequence,
            entry.at if isinstance(entry.at, str) else f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z",
            f"{entry.who.kind} {entry.who.name}" + (f" for {entry.said}" if entry.said else ""),
            entry.source,
            entry.action,
            entry.object.text,
            entry.model,
            entry.outcome,
            _why(entry),
        )
        for entry in entries
    )
    return rows("", ("entry", "at", "who", "from", "action", "object", "model", "outcome", "why"), lines)


def time_of(text: str, now: datetime) -> datetime:
    """Return the time that `--since` names. Raises InvalidInput."""
    found = _LENGTH.fullmatch(text)
    if found is not None:
        return now - timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"--since: {text!r} is no time; allowed: {', '.join(_TIMES)}"
        raise InvalidInput(msg, field="since", value=text, allowed=_TIMES) from error
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _why(entry: AuditEntry) -> str:
    more = f"({entry.left_out} more before it were left out)" if entry.left_out else ""
    return " ".join(text for text in (entry.reason, more) if text)


def _format_verification(found: Verification, anchors: tuple[AuditHead, ...]) -> str:
    if found.fault is not None:
        whole = f"; entries {found.first} to {found.last} are whole" if found.entries else ""
        first = f"NOT VERIFIED: {found.fault.kind} at entry {found.fault.sequence}: {found.fault.message}{whole}"
        further = [f"{fault.kind} at entry {fault.sequence}: {fault.message}" for fault in found.further]
        return "\n".join((first, *further))
    if not found.entries:
        return "there are no entries" + (f" after {found.first - 1}" if found.first > 1 else "")
    text = f"verified: entries {found.first} to {found.last}, hash {found.hash}"
    if anchors:
        return f"{text}; {found.anchors} of {len(anchors)} anchors are among them"
    return f"{text}; without an anchor a tail that was cut off is not found (`ipnext audit head -o json` prints one)"


def _entries(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with file.open("rb") as lines:
            yield from read_entries(lines)
    except OSError as error:
        msg = f"FILE: {file} can't be read: {error.strerror}"
        raise InvalidInput(msg, field="file", value=str(file)) from error


def _anchors(file: Path) -> tuple[AuditHead, ...]:
    try:
        return read_anchors(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"--anchor: {file} can't be read: {error}"
        raise InvalidInput(msg, field="anchor", value=str(file)) from error


COMMANDS = (
    Command("list", "List entries of the audit.", list_entries),
    Command("verify", "Verify that no entry was changed, removed, inserted or moved.", verify_entries),
    Command("export", "Write the audit as JSON lines.", export),
    Command("head", "Print the newest entry's sequence and hash.", head),
)
GROUP = typer.Typer(name="audit", help="List, verify and export the audit.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
