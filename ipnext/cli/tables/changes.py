"""How changes, events and explanations are shown."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import age, rows
from ipnext.cli.tables.stages import progress_table, shadow_table
from ipnext.model.api.resources import ChangeView, EventView, StatusExplanation
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.status import Reason


def changes_list(changes: Iterable[ChangeView]) -> Table:
    """One line for each change of any model."""
    lines = ((c.id, c.model, c.kind.value, c.generation, c.state.value, age(c.created_at), _why(c)) for c in changes)
    return rows("", ("change", "model", "kind", "generation", "state", "age", "why"), lines)


def changes_table(changes: Iterable[ChangeView]) -> Table:
    """One line for each change."""
    lines = ((c.id, c.kind.value, c.generation, c.state.value, age(c.created_at), _why(c), c.run_url) for c in changes)
    return rows("\nchanges", ("change", "kind", "generation", "state", "age", "why", "run"), lines)


def change_tables(change: ChangeView) -> Iterable[Table]:
    """Everything about one change: what became of it, its shadow, its stages."""
    facts = (
        ("change", change.id),
        ("model", change.model),
        ("kind", change.kind.value),
        ("generation", change.generation or "-"),
        ("plan", change.plan_id or "-"),
        ("state", change.state.value),
        ("why", _why(change) or "-"),
        ("asked for", f"{age(change.created_at)} ago"),
        ("ended", "-" if change.finished_at is None else f"{age(change.finished_at)} ago"),
        ("carried out again by", change.again or "-"),
        ("run", change.run_url or "-"),
    )
    yield rows("", ("", ""), facts)
    if change.shadow is not None:
        yield shadow_table(change.shadow)
    if change.stages:
        yield progress_table(change.stages, change.id)


def events_table(events: Iterable[EventView]) -> Table:
    """One line for each event."""
    return rows("", ("age", "what", "message"), ((age(e.at), e.kind, e.message) for e in events))


_AT_REST = frozenset({Reason.SERVING, Reason.SUCCEEDED, Reason.PROGRESSING, Reason.PENDING})
"""Reasons of a ready model with which nothing is wrong."""


def explanation_tables(explanation: StatusExplanation) -> Iterable[Table | str]:
    """Tabulate the chain, then the advice."""
    ready = "not ready"
    if explanation.ready:
        ready = "ready" if explanation.reason in _AT_REST else "ready, but one thing is wrong"
    yield f"{explanation.model} is {ready}: {explanation.reason.value}: {explanation.message}\n"
    steps = ((step.level, step.subject, step.state, step.message) for step in explanation.chain)
    yield rows("", ("where", "what", "state", ""), steps)
    yield f"\n{explanation.advice}"


def _why(change: Change) -> str:
    return ": ".join(text for text in (change.reason.value if change.reason else "", change.message) if text)
