"""Single snapshots on the command line: `ipnext snapshot hold|unhold|delete`."""

from typing import Annotated

import typer

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, write
from ipnext.cli.session import client_of
from ipnext.cli.tables.lineage import holds_table, snapshots_table
from ipnext.errors import InvalidInput

Part = Annotated[str, typer.Argument(metavar="PART", help="Name of the part.", show_default=False)]
Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Number of the snapshot.", show_default=False)]


def hold(
    context: typer.Context,
    model: ModelName,
    part: Part,
    number: Number,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it stays in the record.")],
    output: Output = Form.TABLE,
) -> None:
    """Hold a snapshot: it is never collected until it is released."""
    if not reason.strip():
        msg = "--reason: is empty; say why the snapshot is held"
        raise InvalidInput(msg, field="reason", value=reason)
    found = client_of(context).hold_snapshot(model, part, number, reason=reason)
    write(found, output, lambda: holds_table([found]))


def unhold(
    context: typer.Context,
    model: ModelName,
    part: Part,
    number: Number,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it stays in the record.")] = "",
    output: Output = Form.TABLE,
) -> None:
    """Release the hold of a snapshot: retention decides about it again."""
    found = client_of(context).release_hold(model, part, number, reason=reason)
    write(found, output, lambda: holds_table([found]))


def delete(context: typer.Context, model: ModelName, part: Part, number: Number, output: Output = Form.TABLE) -> None:
    """Release the bytes of a snapshot that nothing needs; else the answer names what needs it."""
    found = client_of(context).delete_snapshot(model, part, number)
    write(found, output, lambda: snapshots_table([found]))


COMMANDS = (
    Command("hold", "Hold a snapshot: it is not collected.", hold),
    Command("unhold", "Release the hold of a snapshot.", unhold),
    Command("delete", "Delete a snapshot that nothing needs.", delete),
)
GROUP = typer.Typer(name="snapshot", help="Hold and delete snapshots.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
