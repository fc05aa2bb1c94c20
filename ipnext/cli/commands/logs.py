"""`ipnext logs`: what the processes of a model's replicas have written."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated

import typer

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, say, write
from ipnext.cli.session import client_of
from ipnext.cli.terminal import escape_controls
from ipnext.errors import InvalidInput
from ipnext.model.deployment.logs import DEFAULT_LINES, MOST_LINES, ReplicaLog

POLL_SECONDS = 1.0
MOST_NAMED = 300


class Printer:
    """Writes logs one below the other, with a line above each that says whose it is."""

    def __init__(self) -> None:
        self._last = ""
        self._whole_line = True

    def show(self, logs: Iterable[ReplicaLog], *, empty: bool = False) -> None:
        """Write what they have; if `empty` is set, the line above those that have nothing, too."""
        for log in logs:
            if log.text or empty:
                self._head(log)
                typer.echo(escape_controls(log.text), nl=False)
                self._whole_line = log.text.endswith("\n") or not log.text

    def _head(self, log: ReplicaLog) -> None:
        if log.file == self._last:
            return
        between = ("" if self._whole_line else "\n") + ("\n" if self._last else "")
        typer.echo(f"{between}==> {escape_controls(headline(log))} <==")
        self._last = log.file

    def end(self) -> None:
        """End the last line."""
        if not self._whole_line:
            typer.echo()


class LogPositions:
    """How far each log was told."""

    def __init__(self, logs: Iterable[ReplicaLog]) -> None:
        self._logs: dict[tuple[str, str], ReplicaLog] = {}
        self.learn(logs)

    def learn(self, logs: Iterable[ReplicaLog]) -> None:
        """Record the logs of an answer."""
        self._logs |= {(log.region, log.file): log for log in logs}

    def newest(self) -> list[ReplicaLog]:
        """Return the logs that may continue, as many as a request can name."""
        going = (log for log in self._logs.values() if not log.former)
        return sorted(going, key=lambda log: log.written_at)[-MOST_NAMED:]


def headline(log: ReplicaLog) -> str:
    """Such as: us-east chat.llm.cpu.0, engine 1a2b3c4d, put aside, replica ended."""
    words = [f"{log.region} {log.replica}"]
    words += [f"engine {log.engine}"] if log.engine else []
    words += ["put aside"] if log.former else []
    words += ["replica ended"] if log.ended else []
    return ", ".join(words)


def logs(  # noqa: PLR0913, PLR0917 - each is an option
    context: typer.Context,
    model: ModelName,
    part: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="Of this part alone.", show_default=False)
    ] = None,
    region: Annotated[str | None, typer.Option(help="Of this region alone.", show_default=False)] = None,
    replica: Annotated[
        int | None, typer.Option(min=0, help="Of replicas with this number alone.", show_default=False)
    ] = None,
    tail: Annotated[int, typer.Option(min=0, max=MOST_LINES, help="Lines of each log, its last ones.")] = DEFAULT_LINES,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Show what hosts and engines of a model's replicas wrote, also of replicas that ended; the newest stand last."""
    if follow and output is not Form.TABLE:
        msg = f"--follow: goes on without end, and {output.value} is written whole; leave one of them out"
        raise InvalidInput(msg, field="follow", value=True)
    client = client_of(context)
    view = client.logs(model, part, region=region, replica=replica, tail=tail)
    for silent in view.unreachable_regions:
        say(f"region {silent} does not answer: its logs are left out")
    if output is not Form.TABLE:
        write(view, output, lambda: ())
        return
    printer = Printer()
    printer.show(view.logs, empty=True)
    known = LogPositions(view.logs)
    with suppress(KeyboardInterrupt):
        while follow:
            time.sleep(POLL_SECONDS)
            view = client.logs(model, part, region=region, replica=replica, tail=MOST_LINES, after=known.newest())
            known.learn(view.logs)
            printer.show(view.logs)
    printer.end()


COMMANDS = (Command("logs", "Show what a model's replicas wrote.", logs),)
