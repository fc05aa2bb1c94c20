"""What `get sources` and `describe source` show."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from ipnext.cli.output import age, rows
from ipnext.model.api.sources import SourceView, VersionView

PUSH = "push"
"""The kind that is not polled."""


def sources_table(sources: Iterable[SourceView]) -> Table:
    """One line for each source."""
    heads = ("model", "source", "part", "kind", "every", "state", "polled", "picked up", "version", "found", "error")
    return rows("", heads, map(_line, sources))


def source_tables(view: SourceView, versions: Sequence[VersionView]) -> Iterable[Table | str]:
    """All of one source: its watch, and the newest versions."""
    of = "" if view.kind == PUSH else f" {view.upstream}, every {view.every}"
    yield f"source {view.name} of model {view.model}, part {view.part}: {view.kind}{of}, {view.state}"
    if view.paused_by is not None:
        yield f"paused by {view.paused_by}" + (f": {view.pause_reason}" if view.pause_reason else "")
    if view.last_error:
        yield f"the last {view.failures} polls failed: {view.last_error}"
    yield f"cursor {view.cursor or 'none yet'}; run {view.run_url}"
    heads = ("version", "state", "trained", "found", "generation", "change", "message")
    yield rows("\nversions", heads, map(_version_line, versions))


def _line(view: SourceView) -> tuple[object, ...]:
    found = ", ".join(f"{count} {state}" for state, count in sorted(view.versions.items()))
    polled = "" if view.last_poll is None else age(view.last_poll)
    picked = "" if view.last_pick_up is None else age(view.last_pick_up)
    where = (view.model, view.name, view.part, view.kind, "" if view.kind == PUSH else view.every, view.state)
    return *where, polled, picked, view.last_version or "", found, view.last_error


def _version_line(view: VersionView) -> tuple[object, ...]:
    change = f"{view.change_id} {view.change_state.value if view.change_state else ''}" if view.change_id else ""
    trained = "" if view.trained_at is None else age(view.trained_at)
    return view.key, view.state.value, trained, age(view.found_at), view.generation or "", change, view.message
