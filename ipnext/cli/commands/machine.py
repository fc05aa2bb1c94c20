"""Commands about this machine: dev and version."""

from pathlib import Path
from typing import Annotated

import typer

import ipnext
from ipnext.cli.command import Command
from ipnext.cli.plugin_group import INSTALL
from ipnext.errors import EXIT_FAILURE
from ipnext.settings import dev_settings


def dev(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    state: Annotated[Path, typer.Option(help="Directory that holds everything; created if missing.")] = Path(".ipnext"),
    config: Annotated[Path | None, typer.Option(help="Another temporal-dev.yaml.")] = None,
    fleet: Annotated[Path | None, typer.Option(help="A manifest of kind Fleet; else two regions.")] = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Take free ports in place of taken ones.")] = False,
    workers: Annotated[int | None, typer.Option(help="Worker processes; else IPNEXT_DEV_WORKERS, else two.")] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="A PostgreSQL for the record, postgresql+psycopg://...; else SQLite in the state."),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(help="A bucket for artifacts, s3://BUCKET/PREFIX (IPNEXT_S3_ENDPOINT_URL); else a directory."),
    ] = None,
) -> None:
    """Start the whole platform on this machine and keep it until Ctrl-C."""
    try:
        from ipnext.dev.platform import run  # noqa: PLC0415 - the platform's dependencies are an extra
    except ImportError as error:
        typer.echo(f"error: the platform is not installed ({error}); try: {INSTALL}", err=True)
        raise typer.Exit(EXIT_FAILURE) from error
    settings = dev_settings(dev_workers=workers, dev_database_url=database_url, dev_artifacts_uri=artifacts)
    raise typer.Exit(run(settings, state=state, config=config, fleet=fleet, free_ports=free_ports))


def version() -> None:
    """Print the version of this installation."""
    typer.echo(ipnext.__version__)


COMMANDS = (
    Command("dev", "Start the whole platform on this machine.", dev),
    Command("version", "Print the version.", version),
)
