"""The platform itself on the command line: `platform setup`, `admin-key`, `check`, `builds`, `promote`.

Talks to Temporal, not to the API.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated

import typer

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, rows, say, write
from ipnext.cli.plugin_group import INSTALL
from ipnext.client.user import system_user
from ipnext.errors import EXIT_FAILURE, InvalidInput
from ipnext.settings import platform_settings

Json = Annotated[bool, typer.Option("--json", help="The same as -o json.")]


@contextmanager
def _requiring_platform() -> Iterator[None]:
    """Say so if the platform's packages are not installed: a client needs none of them."""
    try:
        yield
    except ImportError as error:
        typer.echo(f"error: the platform is not installed ({error}); try: {INSTALL}", err=True)
        raise typer.Exit(EXIT_FAILURE) from error


def setup(
    retention_days: Annotated[
        int, typer.Option("--retention-days", min=1, help="How long a namespace that is created keeps ended runs.")
    ] = 7,
    reset_schedule: Annotated[
        bool, typer.Option("--reset-schedule", help="Bring existing schedules back to the settings, too.")
    ] = False,
) -> None:
    """Create what is absent: namespace, search attributes, schedules, tables. Changes nothing that exists."""
    with _requiring_platform():
        from ipnext.platform import setup as making  # noqa: PLC0415 - the platform's dependencies are an extra
    retention = timedelta(days=retention_days)
    for line in asyncio.run(making.setup(platform_settings(), retention=retention, with_reset=reset_schedule)):
        say(line)
    say("set up; `ipnext platform check` looks at everything")


def check(output: Output = Form.TABLE, json: Json = False) -> None:
    """Look at everything that the platform needs. Exit status 1 if something is missing or wrong."""
    with _requiring_platform():
        from ipnext.platform import checks  # noqa: PLC0415 - the platform's dependencies are an extra
    found = asyncio.run(checks.check(platform_settings()))
    lines = ((item.item, item.state, item.detail, item.remedy) for item in found)
    write(found, Form.JSON if json else output, lambda: rows("", ("item", "state", "detail", "what to do"), lines))
    if any(item.state != "ok" for item in found):
        raise typer.Exit(EXIT_FAILURE)


def builds(output: Output = Form.TABLE, json: Json = False) -> None:
    """List the builds of the workers: which is current, which ramps, what still runs on each."""
    with _requiring_platform():
        from ipnext.platform import builds as versions  # noqa: PLC0415 - the platform's dependencies are an extra
        from ipnext.temporal import connect  # noqa: PLC0415

    async def list_builds() -> tuple[versions.Build, ...]:
        return await versions.builds(await connect())

    found = asyncio.run(list_builds())
    lines = ((b.build_id, b.state, f"{b.ramp_percent:g} %" if b.ramp_percent else "", b.open_runs) for b in found)
    write(found, Form.JSON if json else output, lambda: rows("", ("build", "state", "ramp", "open runs"), lines))
    if not any(b.state == "current" for b in found):
        say("no build is current: new runs begin on the workers without a build id")


def promote(
    build: Annotated[
        str | None, typer.Argument(metavar="BUILD", help="Build id of workers that run.", show_default=False)
    ] = None,
    ramp: Annotated[
        float | None, typer.Option("--ramp", min=0, max=100, help="Only this share of new runs, in percent.")
    ] = None,
    unversioned: Annotated[
        bool, typer.Option("--unversioned", help="In place of BUILD: the workers without a build id.")
    ] = False,
) -> None:
    """Make a build the current one: new runs begin on it, entities go over to it."""
    if bool(build) == unversioned:
        msg = "BUILD or --unversioned: name one of them; `ipnext platform builds` lists the builds"
        raise InvalidInput(msg, field="BUILD", value=build or "")
    if unversioned and ramp is not None:
        msg = "--ramp: only a build with an id can have a share of new runs; without --ramp they get all"
        raise InvalidInput(msg, field="--ramp", value=ramp)
    with _requiring_platform():
        from ipnext.platform import builds as versions  # noqa: PLC0415 - the platform's dependencies are an extra
        from ipnext.temporal import connect  # noqa: PLC0415

    async def promote_build() -> None:
        client = await connect()
        if build:
            await versions.promote(client, build, ramp_percent=ramp)
        else:
            await versions.promote_unversioned(client)

    asyncio.run(promote_build())
    if not build:
        say("workers without a build id are current")
    else:
        say(f"build {build} is current" if ramp is None else f"build {build} takes {ramp:g} % of new runs")


def admin_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.", show_default=False)],
    output: Output = Form.TABLE,
) -> None:
    """Create a key with role admin in the record itself: the first one of a platform, or one in place of a lost one.

    Needs IPNEXT_DATABASE_URL and no API: who may write the record may do everything anyway.
    """
    with _requiring_platform():
        from ipnext.platform.admin import create_admin_key  # noqa: PLC0415 - the platform's dependencies are an extra
    made = create_admin_key(platform_settings().database_url, name, created_by=f"{system_user()} by ipnext platform")
    write(made, output, lambda: [made.key])
    say(f"key {made.id} ({made.name}) may do everything; this is the only time that its text is shown")


COMMANDS = (
    Command("setup", "Create what the platform needs and lacks.", setup),
    Command("admin-key", "Create an administrator's API key in the record.", admin_key),
    Command("check", "Check everything that the platform needs.", check),
    Command("builds", "List the builds of the workers.", builds),
    Command("promote", "Make a build of the workers current, or ramp it up.", promote),
)
GROUP = typer.Typer(name="platform", help="Set up, check and upgrade the platform itself.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
