"""Commands about this machine: dev and version."""

from pathlib import Path
from typing import Annotated

import typer

import ipnext
from ipnext.cli.command import Command
from ipnext.cli.group import INSTALL
from ipnext.errors import EXIT_FAILURE


def dev(
    state: Annotated[Path, typer.Option(help="Directory that holds everything; made where missing.")] = Path(".ipnext"),
    config: Annotated[Path | None, typer.Option(help="Another temporal-dev.yaml.")] = None,
    fleet: Annotated[Path | None, typer.Option(help="A manifest of kind Fleet; else two regions.")] = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Take free ports in place of taken ones.")] = False,
    workers: Annotated[int | None, typer.Option(help="Worker processes; else IPNEXT_DEV_WORKERS, else two.")] = None,
) -> None:
    """Start the whole platform on this machine and keep it until Ctrl-C."""
    try:
        from ipnext.dev import run  # noqa: PLC0415 - the platform's dependencies are an extra
    except ImportError as error:
        typer.echo(f"error: the platform is not installed ({error}); try: {INSTALL}", err=True)
        raise typer.Exit(EXIT_FAILURE) from error
    raise typer.Exit(run(state=state, config=config, fleet=fleet, free_ports=free_ports, workers=workers))


def version() -> None:
    """Print the version of this installation."""
    typer.echo(ipnext.__version__)


COMMANDS = (
    Command("dev", "Start the whole platform on this machine.", dev),
    Command("version", "Print the version.", version),
)
