"""How the demo shows what happens: stages as they pass, tables, a plan's diff."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.load import Answers
from ipnext.client import Client
from ipnext.errors import IPnextError
from ipnext.model.api.resources import ModelView
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.status import Condition, ModelStatus
from ipnext.model.planning.plan import PlanDiff

MARKS = {"True": "[green]✓[/]", "False": "[yellow]…[/]", "Unknown": "[dim]·[/]"}


@contextmanager
def watching(console: Console, client: Client, model: str, change: Change) -> Iterator[None]:
    """While inside, a table of the model's conditions and traffic lives on the console."""
    stop = threading.Event()
    began = time.monotonic()

    with Live(Text("…"), console=console, refresh_per_second=8) as live:

        def look() -> None:
            while not stop.wait(0.15):
                try:
                    status = client.model(model).status
                except (IPnextError, httpx.HTTPError):  # a glance that failed is followed by the next one
                    continue
                live.update(progress_table(status, change, time.monotonic() - began))

        watcher = threading.Thread(target=look, name="watcher")
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            live.update(progress_table(client.model(model).status, change, time.monotonic() - began))
    if not console.is_terminal:
        console.print()


def progress_table(status: ModelStatus, change: Change, seconds: float) -> Table:
    """Conditions on the left, traffic of each region on the right."""
    title = f"{change.kind.value} of {status.model}, {seconds:.1f} s"
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for condition in status.conditions:
        table.add_row(MARKS[condition.status], condition.type.value, _reason(condition))
    for region, shares in sorted(status.traffic.items()):
        shown = ", ".join(f"generation {s.generation} in {s.to} {s.fraction:.0%}" for s in shares if s.fraction > 0)
        table.add_row("⇄", region, shown or "no traffic")
    return table


def _reason(condition: Condition) -> str:
    text = condition.reason.value + (f": {condition.message}" if condition.message else "")
    return text if len(text) <= 100 else text[:99] + "…"


def status_table(view: ModelView) -> Table:
    """Replicas of a model, after a rollout."""
    status = view.status
    table = Table(title=f"{status.model}: generation {status.serving_generation} serves", title_justify="left")
    for column in ("part", "region", "hardware", "process", "phase", "holds generations"):
        table.add_column(column)
    for r in sorted(status.replicas, key=lambda r: r.id):
        holds = ", ".join(map(str, r.ready))
        table.add_row(r.key.part, r.key.region, r.key.hardware, str(r.pid or "-"), r.phase.value, holds)
    return table


def diff_table(diff: PlanDiff) -> Table:
    """Tabulate the changes of a replan."""
    title = (
        f"the plan's diff: {diff.moves} started, {diff.cost_per_hour_before:.2f} → {diff.cost_per_hour_after:.2f} $/h"
    )
    table = Table(title=title, title_justify="left")
    for column in ("what", "where", "before", "after"):
        table.add_column(column)
    for change in diff.replicas:
        where = f"{change.part} in {change.region} on {change.hardware}"
        table.add_row("replicas", where, str(change.before), str(change.after))
    for share in diff.traffic:
        table.add_row("traffic", f"{share.origin} → {share.to}", f"{share.before:.0%}", f"{share.after:.0%}")
    return table


def answers_table(answers: Answers) -> Table:
    """Tabulate the answers to the steady load."""
    table = Table(title="answers under steady load", title_justify="left")
    for column in ("requests", "failed", "mixed", "by generation", "by region"):
        table.add_column(column)
    generations = ", ".join(f"{g}: {n:,}" for g, n in sorted(answers.by_generation.items()))
    regions = ", ".join(f"{r}: {n:,}" for r, n in sorted(answers.by_region.items()))
    table.add_row(f"{answers.requests:,}", str(answers.failed), str(answers.mixed), generations, regions)
    return table


def endpoints_table(endpoints: dict[str, object], path: str = "v2/models/movie-ranker/infer") -> Table:
    """Addresses to look around. `path`: the path of a model, below each gateway."""
    table = Table(title="look around", title_justify="left", show_header=False)
    for name in ("page", "temporal_ui", "docs", "api"):
        table.add_row(name.replace("_", " "), str(endpoints[name]))
    gateways = endpoints["gateways"]
    if isinstance(gateways, dict):
        for region, url in gateways.items():
            table.add_row(f"gateway {region}", f"{url}/{path}")
    return table
