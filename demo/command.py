"""`ipnext demo`: starts the platform, tells the story, ends or stays up."""

import threading
from pathlib import Path

import typer
from rich.console import Console

from demo import telling
from demo.embedded import Embedded
from demo.report import Report
from demo.session import Once, ReportFile, StateDirectory, run
from demo.story import Story

app = typer.Typer(help="Watch the whole life of a real ranking model on this machine.", invoke_without_command=True)


@app.callback()
def demo(*, once: Once = False, report: ReportFile = None, state: StateDirectory = None) -> None:
    """Train, publish, serve, refresh under load, refuse, roll back, replan."""
    run(lambda console, place: _tell(console, place, once=once, report=report), state)


def _tell(console: Console, place: Path, *, once: bool, report: Path | None) -> bool:
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
