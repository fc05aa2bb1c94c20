"""Collection by retention on the command line: `artifacts collect`."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, rows, say, write
from ipnext.cli.session import client_of
from ipnext.model.access.artifact_use import CollectionView


def collect(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; remove nothing.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Release snapshots that nothing needs, remove unused blobs, and delete old rows of the history.

    The platform does so on a schedule.
    """
    found = client_of(context).collect_artifacts(dry_run=dry_run)
    say(f"{found.summary}; in use since {found.unused_since:%Y-%m-%d %H:%M} UTC: kept")
    write(found, output, lambda: _tables(found))


def _tables(found: CollectionView) -> Iterable[Table]:
    sums = (
        (each.kind, count, reason, each.size_bytes if count == each.count else "")
        for each in found.classes
        for reason, count in each.reasons.items()
    )
    yield rows("", ("class", "items", "reason", "bytes"), sums)
    if found.items:
        lines = ((item.kind, item.name, item.size_bytes, item.reason) for item in found.items)
        yield rows("\nthe first of them", ("kind", "name", "bytes", "reason"), lines)


COMMANDS = (Command("collect", "Collect what retention lets go.", collect),)
GROUP = typer.Typer(name="artifacts", help="Look after the artifact store.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
