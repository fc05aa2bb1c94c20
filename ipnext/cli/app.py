"""The commands put together, and the edge of the process."""

import os
import sys
from typing import Annotated

import stamina.instrumentation
import typer

from ipnext.cli.access import audit, identity, keys, roles, signing
from ipnext.cli.commands import (
    changes,
    controls,
    drains,
    freezes,
    logs,
    machine,
    platform,
    prediction,
    queries,
    rendering,
)
from ipnext.cli.commands.registry import artifacts, checkpoint_import, denials, lineage, profiles, snapshots, sources
from ipnext.cli.plugin_group import PluginGroup
from ipnext.cli.session import Session
from ipnext.errors import EXIT_FAILURE
from ipnext.process.end import end_process
from ipnext.settings import client_settings

app = typer.Typer(
    name="ipnext",
    cls=PluginGroup,
    help="Publish, watch, plan and serve models. Every command takes -h; answers can be tables, JSON or YAML.",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
MODULES = (
    changes,
    controls,
    freezes,
    denials,
    drains,
    queries,
    lineage,
    logs,
    prediction,
    profiles,
    machine,
    rendering,
    identity,
    signing,
    checkpoint_import,
)
"""Where the commands come from, in the order of the help."""
for module in MODULES:
    for command in module.COMMANDS:
        app.command(command.name, help=command.help)(command.function)
GROUPS = (snapshots, sources, keys, roles, audit, artifacts, platform)
"""Modules whose commands share a first word: `GROUP` holds them."""
for group in GROUPS:
    app.add_typer(group.GROUP)


@app.callback()
def connect(
    context: typer.Context,
    api: Annotated[str | None, typer.Option(help="URL of the API; else IPNEXT_API_URL.", show_default=False)] = None,
    timeout_seconds: Annotated[
        float | None, typer.Option("--api-timeout", min=0.1, help="Longest wait for one answer, in seconds.")
    ] = None,
) -> None:
    """Read the settings; connects to nothing yet. Without a command: the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    context.obj = Session(client_settings(api_url=api, timeout_seconds=timeout_seconds))
    context.call_on_close(context.obj.close)


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 failed, 2 bad input, 3 infeasible. Never a traceback."""
    stamina.instrumentation.set_on_retry_hooks([])  # a retry is no news for the person at the terminal
    try:
        _run()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            end_process(ended.code)
        raise


def _run() -> None:
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except Exception as error:  # noqa: BLE001 - the edge of the process
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        sys.exit(EXIT_FAILURE)
