"""Lineage on the command line: `ipnext lineage`."""

from typing import Annotated

import typer

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, say, write
from ipnext.cli.session import client_of
from ipnext.cli.tables.lineage import lineage_table, lineage_tables


def lineage(
    context: typer.Context,
    model: ModelName,
    part: Annotated[str | None, typer.Argument(metavar="PART", help="Only this part.", show_default=False)] = None,
    number: Annotated[
        int | None, typer.Argument(metavar="NUMBER", min=1, help="Only this snapshot.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many snapshots.")] = 50,
    output: Output = Form.TABLE,
) -> None:
    """Show where snapshots come from and went: training run, derived snapshots, generations and placements."""
    client = client_of(context)
    if number is not None and part is not None:
        one = client.snapshot_lineage(model, part, number)
        write(one, output, lambda: lineage_tables(one))
        return
    found = client.lineage(model, part=part, limit=limit)
    write(found, output, lambda: lineage_table(found))
    if found.next is not None:
        say(f"there are more than {limit}: --limit lists so many")


COMMANDS = (Command("lineage", "Show where snapshots come from, and where they run.", lineage),)
