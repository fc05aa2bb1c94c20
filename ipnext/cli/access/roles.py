"""Roles of people and groups on the command line: `roles grant`, `list`, `revoke`."""

from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from ipnext.cli.access.keys import over
from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, age, rows, write
from ipnext.cli.session import client_of
from ipnext.errors import InvalidInput
from ipnext.model.access.rights import ANY, Role
from ipnext.model.access.roles import RoleRequest, RoleView


def grant(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help=(
                "group:NAME or user:NAME, as the identity provider's tokens name it; email:ADDRESS, verified; "
                "sub:ID, its lasting id."
            ),
            show_default=False,
        ),
    ],
    role: Annotated[Role, typer.Option(help="What it may do; each role includes those before it.")],
    owner: Annotated[str, typer.Option(help="Over the models of this owner; * is all.")] = ANY,
    region: Annotated[str, typer.Option(help="Over this region, and no models: viewer or operator.")] = ANY,
    output: Output = Form.TABLE,
) -> None:
    """Grant a role; in force within 5 s. The same grant again changes nothing."""
    view = client_of(context).grant_role(_request(subject, role, owner, region))
    write(view, output, lambda: [f"{view.subject} is {view.role.value} of {over(view)}: binding {view.id}"])


def list_roles(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most bindings.")] = 100,
    output: Output = Form.TABLE,
) -> None:
    """List role bindings, the newest first."""
    found = list(client_of(context).roles(limit=limit))
    write(found, output, lambda: _table(found))


def revoke(
    context: typer.Context,
    binding_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the binding, as `roles list` shows it.", show_default=False)
    ],
    output: Output = Form.TABLE,
) -> None:
    """Revoke a role; in force everywhere within 5 s."""
    view = client_of(context).revoke_role(binding_id)
    write(view, output, lambda: [f"{view.subject} is no longer {view.role.value} of {over(view)}"])


def _request(subject: str, role: Role, owner: str, region: str) -> RoleRequest:
    try:
        return RoleRequest(subject=subject, role=role, owner=owner, region=region)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        allowed = {
            "subject": ("group:NAME", "user:NAME", "email:ADDRESS", "sub:ID"),
            "owner": ("the name of an owner", ANY),
            "region": ("the name of a region", ANY),
        }[field]
        value = {"subject": subject, "owner": owner, "region": region}[field]
        msg = f"{field}: {value!r} can't be used; allowed: {', '.join(allowed)}"
        raise InvalidInput(msg, field=field, value=value, allowed=allowed) from error


def _table(found: list[RoleView]) -> Table:
    lines = (
        (role.id, role.subject, role.role.value, over(role), role.created_by, age(role.created_at)) for role in found
    )
    return rows("", ("id", "subject", "role", "over", "granted by", "granted"), lines)


COMMANDS = (
    Command("grant", "Grant a role to a person or group.", grant),
    Command("list", "List role bindings.", list_roles),
    Command("revoke", "Revoke a role.", revoke),
)
GROUP = typer.Typer(name="roles", help="Grant, list and revoke roles of people and groups.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
