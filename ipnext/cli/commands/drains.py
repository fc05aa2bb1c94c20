"""Regions on the command line: `drain`, `undrain`."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Command, Timeout
from ipnext.cli.output import Form, Output, age, number, rows, say, write
from ipnext.cli.session import client_of
from ipnext.model.lifecycle.regions.drain import DrainView

RegionName = Annotated[str, typer.Argument(metavar="REGION", help="Name of the region.", show_default=False)]
Why = Annotated[str, typer.Option("--reason", help="Why: it stays in the record.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end; exit status 1 if it is refused.")]


def drain(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    region: RegionName,
    disaster: Annotated[
        bool, typer.Option("--disaster", help="The region is gone: its traffic goes elsewhere at once.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on although demand stays unserved.")] = False,
    reason: Why = "",
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Take a region out of service. A disaster is always waited for until its traffic goes elsewhere."""
    client = client_of(context)
    found = client.drain(region, disaster=disaster, force=force, reason=reason)
    if wait:
        found = client.wait_drain(region, timeout, on_update=lambda now: say(now.summary))
    elif disaster:
        found = client.wait_routed(region, timeout)
    if not wait:
        say(found.summary)
    write(found, output, lambda: drains_table([found]))


def undrain(
    context: typer.Context,
    region: RegionName,
    reason: Why = "",
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Bring a region back into service: its supply counts again, and the fleet is planned anew."""
    client = client_of(context)
    found = client.undrain(region, reason=reason)
    if wait:
        found = client.wait_drain(region, timeout, on_update=lambda now: say(now.summary))
    else:
        say(found.summary)
    write(found, output, lambda: drains_table([found]))


def drains_table(drains: Iterable[DrainView]) -> Table:
    """One line for each drain."""
    heads = (
        "region",
        "state",
        "kind",
        "since",
        "reason",
        "models left",
        "replicas left",
        "requests or tokens/s left",
        "message",
    )
    lines = (
        (
            found.region,
            found.status,
            "disaster" if found.disaster else "planned",
            age(found.created_at),
            found.reason,
            found.models_left,
            found.replicas_left,
            number(found.traffic_left_qps),
            found.message,
        )
        for found in drains
    )
    return rows("", heads, lines)


COMMANDS = (
    Command("drain", "Take a region out of service.", drain),
    Command("undrain", "Bring a region back into service.", undrain),
)
