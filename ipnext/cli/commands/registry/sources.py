"""Sources on the command line: `ipnext source pause|resume|poll|push`."""

from pathlib import Path
from typing import Annotated

import typer

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, write
from ipnext.cli.session import client_of
from ipnext.cli.tables.sources import source_tables, sources_table
from ipnext.errors import InvalidInput

SourceName = Annotated[str, typer.Argument(metavar="SOURCE", help="Name of the source.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it stays in the record.")]


def pause(
    context: typer.Context, model: ModelName, source: SourceName, reason: Reason = "", output: Output = Form.TABLE
) -> None:
    """Pause a source: nothing of it is polled or published until it is resumed."""
    found = client_of(context).pause_source(model, source, reason=reason)
    write(found, output, lambda: sources_table([found]))


def resume(
    context: typer.Context, model: ModelName, source: SourceName, reason: Reason = "", output: Output = Form.TABLE
) -> None:
    """Resume a source: of what came while it was paused, the newest is published."""
    found = client_of(context).resume_source(model, source, reason=reason)
    write(found, output, lambda: sources_table([found]))


def poll(
    context: typer.Context, model: ModelName, source: SourceName, reason: Reason = "", output: Output = Form.TABLE
) -> None:
    """Poll a source now, ahead of its interval."""
    found = client_of(context).poll_source(model, source, reason=reason)
    write(found, output, lambda: sources_table([found]))


def push(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    model: ModelName,
    source: SourceName,
    snapshot: Annotated[str, typer.Argument(help="Snapshot directory, or a file:// or s3:// uri of the server's.")],
    key: Annotated[str | None, typer.Option(help="Makes a repeated push one version; else its digest.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A tag; may be repeated.")] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help="A metric; may be repeated.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Push a version to a source of kind `push`; a directory is uploaded first."""
    client = client_of(context)
    tags, metrics = _pairs(tag or [], "tag"), _numbers(_pairs(metric or [], "metric"))
    if "://" in snapshot:
        client.push_version(model, source, uri=snapshot, key=key, tags=tags, metrics=metrics)
    else:
        digest = client.upload(model, Path(snapshot))
        client.push_version(model, source, digest=digest, key=key, tags=tags, metrics=metrics)
    found, versions = client.source(model, source), client.source_versions(model, source, limit=5)
    write(found, output, lambda: source_tables(found, versions))


def _pairs(given: list[str], what: str) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            msg = f"--{what}: {text!r} is not of the form NAME=VALUE"
            raise InvalidInput(msg, field=what, value=text)
        pairs[name] = value
    return pairs


def _numbers(given: dict[str, str]) -> dict[str, float]:
    found = {}
    for name, text in given.items():
        try:
            found[name] = float(text)
        except ValueError as error:
            msg = f"--metric: {name} is {text!r}, which is no number"
            raise InvalidInput(msg, field="metric", value=text) from error
    return found


COMMANDS = (
    Command("pause", "Pause a source.", pause),
    Command("resume", "Resume a source.", resume),
    Command("poll", "Poll a source now.", poll),
    Command("push", "Push a version to a source of kind push.", push),
)
GROUP = typer.Typer(name="source", help="Pause, resume, poll and push to sources of models.", no_args_is_help=True)
for command in COMMANDS:
    GROUP.command(command.name, help=command.help)(command.function)
