"""Who this user is to the API: `login`, `logout`, `whoami`, `page`."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, say, write
from ipnext.cli.session import client_of, session_of
from ipnext.client import Client
from ipnext.client.login import LoginTerms, check_terms, end_login, entry_of, known_terms, login_at
from ipnext.errors import Forbidden, InvalidInput, NotFound
from ipnext.login.credentials import find_entry, note_credential, origin_of
from ipnext.model.access.rights import ANY, Grant
from ipnext.settings import LOGIN_VARIABLES, ClientSettings


def login(
    context: typer.Context,
    key: Annotated[bool, typer.Option("--key", help="Keep an API key or token from standard input instead.")] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Accept the provider, client and audience that the API names, at the first login."),
    ] = False,
) -> None:
    """Log in at the identity provider that the API names, in any browser; or keep the key that standard input gives.

    The first login at an API asks whether its provider, client and audience are right. Later ones must be the same.
    What proves you is written down for this API's address, in a file that only you can read.
    """
    given = _given_key(asked=key)
    if given is None:
        given = _log_in(session_of(context).settings, yes=yes)
    if given is not None:
        _keep(session_of(context).settings, given)


def logout(context: typer.Context) -> None:
    """Forget the credential for this API's address, and revoke a login at the identity provider. A key stays valid.

    The key of a running `ipnext dev` is used again after the end of a login.
    """
    settings = session_of(context).settings
    known, remark = end_login(str(settings.api_url), settings.credentials_file)
    say(f"{'forgot the credential' if known else 'there was no credential'} for {origin_of(str(settings.api_url))}")
    if remark:
        say(remark)


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


def _given_key(*, asked: bool) -> str | None:
    """Read the key from standard input; None if there is none and none was asked for."""
    if not _is_terminal():
        text = sys.stdin.read().strip()
    elif asked:
        text = str(typer.prompt("API key", hide_input=True, err=True)).strip()
    else:
        text = ""
    if asked and not text:
        msg = "login: no key was given; `ipnext keys create` makes one, `echo KEY | ipnext login` keeps it"
        raise InvalidInput(msg, field="api_key")
    return text or None


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _keep(settings: ClientSettings, key: str) -> None:
    """Write a key down that the API knows. Unauthenticated."""
    url = str(settings.api_url)
    with Client(url, settings.timeout_seconds, api_key=key) as client:
        found = client.who_am_i()
    _note(settings, {"credential": key})
    say(f"logged in to {origin_of(url)} as {found.name}: {_grants(found.grants)}")


def _note(settings: ClientSettings, entry: Mapping[str, Any]) -> None:
    """Write down the entry of a login. It goes before that of `ipnext dev`, which stays."""
    url, file = str(settings.api_url), settings.credentials_file
    former = find_entry(url, file)
    note_credential(url, entry, file)
    if former is not None and "key_file" in former:
        say("this login is used instead of the key of `ipnext dev`, until `ipnext logout`")


def _agree(settings: ClientSettings, named: LoginTerms, *, yes: bool) -> None:
    """Check the terms that the API names against those of the settings or of the last login; ask if there are none.

    Forbidden if they differ; InvalidInput if the user does not agree.
    """
    api = origin_of(str(settings.api_url))
    configured = settings.login_terms
    if any(configured):
        expected = LoginTerms(*(given or now for given, now in zip(configured, named, strict=True)))
        remedy = f"Allowed: what the settings say ({', '.join(LOGIN_VARIABLES)})"
        check_terms(named, expected, api=api, since="the settings say", remedy=remedy)
    if all(configured):
        return
    known = known_terms(str(settings.api_url), settings.credentials_file)
    if known is not None:
        remedy = "If its operator says that they are right, `ipnext logout`, then `ipnext login`"
        check_terms(named, known, api=api, since="at the last login", remedy=remedy)
        return
    say(f"{api} names for logins:")
    for line in named.lines():
        say(line)
    say(f"{api} gets your token, which is good wherever tokens for this audience are.")
    if yes:
        return
    if not _is_terminal():
        msg = (
            f"login: the terms of {api} are not agreed to; `ipnext login --yes` does so, "
            f"or set {', '.join(LOGIN_VARIABLES)}"
        )
        raise InvalidInput(msg, field="yes")
    if not typer.confirm("Are they those of this platform?", err=True):
        msg = f"login: the terms of {api} were not agreed to; ask its operator which they are"
        raise InvalidInput(msg, field="yes")


def _log_in(settings: ClientSettings, *, yes: bool) -> str | None:
    """Log a person in and write the tokens down. Without an identity provider: the key that a person types."""
    url = str(settings.api_url)
    with Client(url, settings.timeout_seconds) as client:
        try:
            options = client.login_options()
        except NotFound as error:
            if not _is_terminal():
                raise
            say(error.message)
            return _given_key(asked=True)
    terms = LoginTerms(options.issuer, options.client_id, options.audience)
    _agree(settings, terms, yes=yes)
    with login_at(options.issuer, options.client_id) as device:
        code = device.begin(options.scopes, options.audience)
        say(
            f"to log in to {origin_of(url)} at {options.issuer}, open {code.address} and enter the code "
            f"{code.user_code}"
        )
        if code.complete_address is not None:
            say(f"or open {code.complete_address}, and check that it shows that code")
        tokens = device.wait(code)
    with Client(url, settings.timeout_seconds, api_key=tokens.access) as client:
        try:
            found = client.who_am_i()
            told = f"as {found.name}: {_grants(found.grants)}"
        except Forbidden as error:  # a person without a role yet
            told = f"without a role: {error.message}"
    _note(settings, entry_of(terms, tokens))
    say(f"logged in to {origin_of(url)} {told}")
    return None


def _grants(grants: tuple[Grant, ...]) -> str:
    return "; ".join(_grant(grant) for grant in grants) or "no role"


def _grant(grant: Grant) -> str:
    if grant.region != ANY:
        return f"{grant.role.value} of region {grant.region}"
    return f"{grant.role.value} of " + ("everything" if grant.owner == ANY else f"owner {grant.owner}")


COMMANDS = (
    Command("login", "Log in at the identity provider, or keep an API key.", login),
    Command("logout", "Forget the credential for this API's address.", logout),
    Command("whoami", "Say who you are to the API.", whoami),
    Command("page", "Print a link that logs a browser in.", page),
)
