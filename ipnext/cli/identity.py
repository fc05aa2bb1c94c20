"""Who this user is to the API: `login`, `logout`, `whoami`, `page`."""

import sys
from typing import Annotated

import typer

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, say, write
from ipnext.cli.session import client_of, session_of
from ipnext.client import Client
from ipnext.credentials import forget_credential, note_credential, origin_of
from ipnext.errors import InvalidInput
from ipnext.model.access import ANY, Grant


def login(context: typer.Context) -> None:
    """Read an API key from standard input and keep it for this API's address, in a file that only you can read."""
    settings = session_of(context).settings
    url = str(settings.api_url)
    key = (typer.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()).strip()
    if not key:
        msg = "login: no key was given; `ipnext keys create` makes one, `echo KEY | ipnext login` keeps it"
        raise InvalidInput(msg, field="api_key")
    with Client(url, settings.timeout_seconds, api_key=key) as client:
        found = client.who_am_i()
    note_credential(url, {"credential": key}, settings.credentials_file)
    say(f"logged in to {origin_of(url)} as {found.name}: {_grants(found.grants)}")


def logout(context: typer.Context) -> None:
    """Forget what `ipnext login` or `ipnext dev` wrote down for this API's address. The key stays valid."""
    settings = session_of(context).settings
    known = forget_credential(str(settings.api_url), settings.credentials_file)
    say(f"{'forgot the credential' if known else 'there was no credential'} for {origin_of(str(settings.api_url))}")


def whoami(context: typer.Context, output: Output = Form.TABLE) -> None:
    """Say as whom the API knows this user, and by which roles."""
    found = client_of(context).who_am_i()
    write(found, output, lambda: [f"{found.kind} {found.name}: {_grants(found.grants)}"])


def page(
    context: typer.Context,
    launch: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
) -> None:
    """Print a link to the page that logs a browser in as you. It is good once, and for ten minutes."""
    settings = session_of(context).settings
    ticket = client_of(context).make_ticket()
    link = f"{str(settings.api_url).rstrip('/')}/#ticket={ticket.ticket}"
    typer.echo(link)
    if launch:
        typer.launch(link)


def _grants(grants: tuple[Grant, ...]) -> str:
    return "; ".join(_grant(grant) for grant in grants) or "no role"


def _grant(grant: Grant) -> str:
    if grant.region != ANY:
        return f"{grant.role.value} of region {grant.region}"
    return f"{grant.role.value} of " + ("everything" if grant.owner == ANY else f"owner {grant.owner}")


COMMANDS = (
    Command("login", "Keep an API key for this API's address.", login),
    Command("logout", "Forget the credential for this API's address.", logout),
    Command("whoami", "Say who you are to the API.", whoami),
    Command("page", "Print a link that logs a browser in.", page),
)
