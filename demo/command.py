"""`ipnext demo`: starts the platform, tells the story, ends or stays up."""

import os
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from demo import telling
from demo.embedded import Embedded
from demo.report import Report
from demo.story import Story
from ipnext.errors import EXIT_FAILURE, IPnextError

app = typer.Typer(help="Watch the whole life of a real ranking model on this machine.", invoke_without_command=True)


@app.callback()
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End when the story is told; leave nothing running.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the figures of the run as JSON.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the platform; a new temporary one if left out.")
    ] = None,
) -> None:
    """Train, publish, serve, refresh under load, refuse, roll back, replan."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with workplace(state) as place:
            sound = _run(console, Path(place).resolve(), once=once, report=report)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except IPnextError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        raise typer.Exit(error.exit_status or EXIT_FAILURE) from None
    raise typer.Exit(0 if sound else EXIT_FAILURE)


def workplace(state: Path | None) -> "tempfile.TemporaryDirectory[str] | _Kept":
    """Return a directory for the platform: the one given, which stays, or a temporary one."""
    return tempfile.TemporaryDirectory(prefix="ipnext-demo-") if state is None else _Kept(state)


class _Kept:
    """A directory that stays."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._path.mkdir(parents=True, exist_ok=True)
        return str(self._path)

    def __exit__(self, *_: object) -> None:
        """Nothing is removed."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(console: Console, place: Path, *, once: bool, report: Path | None) -> bool:
    with console.status("starting Temporal, Envoy, API, worker and two regions") as status:
        platform = Embedded(place, on_wait=lambda line: status.update(f"starting the platform [dim]{line}"))
        platform.__enter__()
    try:
        console.print(telling.endpoints_table(dict(platform.endpoints)))
        found = Story(console, platform.endpoints, place).tell()
        _conclude(console, found, report)
        if not once:
            console.print(telling.endpoints_table(dict(platform.endpoints)))
            console.print("the platform stays up for you to look around; [bold]Ctrl-C[/] ends it")
            threading.Event().wait()
    finally:
        with console.status("ending everything; Ctrl-C once more ends it at once"):
            platform.stop()
    return found.sound


def _conclude(console: Console, found: Report, report: Path | None) -> None:
    if report is not None:
        found.write(report)
    verdict = "[bold green]every promise kept" if found.sound else "[bold red]a promise was broken; see the report"
    console.print(
        f"{verdict}[/]: {found.requests:,} requests, {found.failed} failed, {found.mixed} mixed; "
        f"publish to serving {found.publish_to_serving_seconds:.1f} s, rollback {found.rollback_seconds:.1f} s, "
        f"{found.total_seconds:.0f} s in all"
    )
