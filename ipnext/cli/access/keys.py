"""API keys on the command line: `keys create`, `list`, `revoke`."""

import re
from datetime import datetime
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from ipnext.cli.command import Command, Timeout
from ipnext.cli.output import Form, Output, age, rows, say, write
from ipnext.cli.session import client_of
from ipnext.errors import InvalidInput
from ipnext.model.access.rights import ANY, KeyRequest, KeyView, Role
from ipnext.model.access.roles import RoleView
from ipnext.model.validation_errors import invalid_input

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ID = re.compile(r"[a-z2-7]{16}")
_LENGTH = re.compile(r"([1-9][0-9]{0,4})([mhdw])")


def create(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.", show_default=False)],
    role: Annotated[Role, typer.Option(help="What it may do; each role includes those before it.")],
    owner: Annotated[str, typer.Option(help="Over the models of this owner; * is all.")] = ANY,
    region: Annotated[str, typer.Option(help="Over this region, and no models: viewer or operator.")] = ANY,
    expires_in: Annotated[
        str | None, typer.Option(help="How long it is valid: 90m, 6h, 30d, 2w; else until it is revoked.")
    ] = None,
    output: Output = Form.TABLE,
) -> None:
    """Create a key. Its text is printed this once; only its digest is stored."""
    lasts = _seconds(expires_in) if expires_in else None
    try:
        request = KeyRequest(name=name, role=role, owner=owner, region=region, expires_in_seconds=lasts)
    except ValidationError as error:
        raise invalid_input(error, KeyRequest) from error
    made = client_of(context).create_key(request)
    write(made, output, lambda: [made.key])
    say(
        f"key {made.id} ({made.name}) is {made.role.value} of {over(made)}; "
        "this is the only time that its text is shown"
    )


def list_keys(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most keys.")] = 100,
    output: Output = Form.TABLE,
) -> None:
    """List keys, the newest first, without secrets."""
    found = list(client_of(context).keys(limit=limit))
    write(found, output, lambda: _table(found))


def revoke(
    context: typer.Context,
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the key, as `keys list` shows it.", show_default=False)
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until no region takes it; exit status 1 if one does.")
    ] = False,
    timeout: Timeout = 30.0,
    output: Output = Form.TABLE,
) -> None:
    """Revoke a key and the sessions that were logged in with it; name the regions that may still take it."""
    view = client_of(context).revoke_key(_id_of(key_id), wait=wait, timeout_seconds=timeout)
    write(view, output, lambda: [f"key {view.id} ({view.name}) is revoked"])
    if view.regions_behind:
        say(f"regions that may still take it: {', '.join(view.regions_behind)}; --wait waits until they do not")


def _id_of(text: str) -> str:
    """Return the id of a key, also of its whole text, which may be in no address and no error. Raises InvalidInput."""
    found = _ID.fullmatch(text.removeprefix("ipnext_").partition(".")[0])
    if found is None:
        msg = "ID: a key's id has 16 letters and digits, as `ipnext keys list` shows it"
        raise InvalidInput(msg, field="id", allowed=("an id of `ipnext keys list`",))
    return found[0]


def _table(found: list[KeyView]) -> Table:
    lines = (
        (
            key.id,
            key.name,
            key.role.value,
            over(key),
            key.created_by,
            age(key.created_at),
            _when(key.last_used_at),
            _state(key),
        )
        for key in found
    )
    return rows("", ("id", "name", "role", "over", "created by", "created", "last used", "state"), lines)


def over(key: KeyView | RoleView) -> str:
    """Over what a key or binding has its role."""
    if key.region != ANY:
        return f"region {key.region}"
    return "everything" if key.owner == ANY else f"owner {key.owner}"


def _when(at: datetime | None) -> str:
    return "never" if at is None else age(at)


def _state(key: KeyView) -> str:
    if key.revoked_at is not None:
        return f"revoked {age(key.revoked_at)} ago"
    return "valid" if key.expires_at is None else f"until {key.expires_at:%Y-%m-%d %H:%M}Z"


def _seconds(text: str) -> int:
    found = _LENGTH.fullmatch(text)
    if found is None:
        msg = f"--expires-in: {text!r} is no length of time; allowed: a number and m, h, d or w, such as 30d"
        raise InvalidInput(msg, field="expires_in", value=text, allowed=("90m", "6h", "30d", "2w"))
    return int(found[1]) * _SECONDS[found[2]]


COMMANDS = (
    Command("create", "Create an API key.", create),
    Command("list", "List API keys.", list_keys),
    Command("revoke", "Revoke an API key.", revoke),
)
GROUP = typer.Typer(name="keys", help="Create, list and revoke API keys.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
