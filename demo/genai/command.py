"""`python -m demo.genai`: prepares the weights, starts the platform, tells the story, ends or stays up."""

import threading
from pathlib import Path

import typer
from rich.console import Console

from demo import telling
from demo.embedded import Embedded
from demo.genai.report import GenaiReport
from demo.genai.story import CHAT, QUESTION, GenaiStory, gateway_of
from demo.genai.weights import Checkpoints, checkpoints, models_directory
from demo.session import Once, ReportFile, StateDirectory, run
from ipnext.client import Client

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def demo(*, once: Once = False, report: ReportFile = None, state: StateDirectory = None) -> None:
    """Publish a real chat model, talk to it, publish another while clients talk, roll back, embed sentences."""

    def tell(console: Console, place: Path) -> bool:
        found = checkpoints(models_directory(), on_convert=lambda directory: _converting(console, directory))
        return _tell(console, place, found, once=once, report=report)

    run(tell, state)


def _converting(console: Console, directory: Path) -> None:
    console.print(f"converting the weights of Gemma 3 270M into {directory}: a minute or two, once")


def _tell(console: Console, place: Path, found: Checkpoints, *, once: bool, report: Path | None) -> bool:
    with console.status("starting Temporal, Envoy, API, worker and two regions") as status:
        platform = Embedded(place, on_wait=lambda line: status.update(f"starting the platform [dim]{line}"))
        platform.__enter__()
    try:
        gateway = gateway_of(platform.endpoints)
        with Client(platform.endpoints["api"]) as client:
            told = GenaiStory(console, client, gateway, found).tell()
        _conclude(console, told, report)
        if not once:
            console.print(telling.endpoints_table(dict(platform.endpoints), "v1/chat/completions"))
            console.print(_try_it(gateway), markup=False, highlight=False, soft_wrap=True)
            console.print("the platform stays up for you to look around; [bold]Ctrl-C[/] ends it")
            threading.Event().wait()
    finally:
        with console.status("ending everything; Ctrl-C once more ends it at once"):
            platform.stop()
    return told.sound


def _try_it(gateway: str) -> str:
    body = (
        f'{{"model": "{CHAT}", "stream": true, "max_tokens": 60, "messages": [{{"role": "user", "content": '
        f'"{QUESTION}"}}]}}'
    )
    return f"curl -N {gateway}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


def _conclude(console: Console, told: GenaiReport, report: Path | None) -> None:
    if report is not None:
        told.write(report)
    for failure in told.failures:
        console.print(f"[red]{failure}", highlight=False)
    verdict = "[bold green]every promise kept" if told.sound else "[bold red]a promise was broken; see the report"
    console.print(
        f"\n{verdict}[/]: {told.streams} streams ({told.tokens:,} tokens), {told.broken} broken, {told.mixed} mixed, "
        f"longest gap {told.longest_gap_seconds:.1f} s; publish to serving {told.first_publish_seconds:.0f} s, "
        f"generation 2 {told.second_publish_seconds:.0f} s, rollback {told.rollback_seconds:.1f} s; "
        f"meaning {told.alike:.2f} against {told.unlike:.2f}; {told.total_seconds:.0f} s in all"
    )
