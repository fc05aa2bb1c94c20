"""Tables of the snapshots that serve, and of their age."""

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.table import Table

from ipnext.cli.output import age, duration, exact_duration, rows
from ipnext.model.api.resources import SnapshotView
from ipnext.model.lifecycle.freshness import PartFreshness

HEADS = ("part", "users in", "snapshot", "trained", "published", "serves since", "age", "target", "fresh", "")


def freshness_table(freshness: Iterable[PartFreshness]) -> Table:
    """One line for each part and region of users: the snapshot that serves there, and its age."""
    return rows("\nsnapshots that serve", HEADS, map(_line, freshness))


def times_of(snapshot: SnapshotView) -> str:
    """When a snapshot was trained, published, and served each region for the first time."""
    trained = "unknown, so its age counts from the publication"
    if snapshot.trained_at is not None:
        trained = f"{_moment(snapshot.trained_at)}, {age(snapshot.trained_at)} ago"
    served = ", ".join(f"{each.region} {_moment(each.serving_at)}" for each in snapshot.servings)
    published = f"{_moment(snapshot.created_at)}, {age(snapshot.created_at)} ago"
    return (
        f"trained: {trained}\npublished: {published}\nserved first: {served or 'not yet, or too long ago to be known'}"
    )


def _line(found: PartFreshness) -> tuple[object, ...]:
    trained = "unknown" if found.trained_at is None else f"{age(found.trained_at)} ago"
    times = (trained, f"{age(found.published_at)} ago", f"{age(found.serving_since)} ago")
    place = (found.part, found.region, found.snapshot)
    return (*place, *times, duration(found.age_seconds), *_judgement(found))


def _judgement(found: PartFreshness) -> tuple[str, str, str]:
    if found.target_seconds is None or found.fresh_share is None or found.objective is None:
        return "-", "-", ""
    state = "late" if found.late else ""
    if found.breached_since is not None:
        state = f"breach for {age(found.breached_since)}"
    return exact_duration(found.target_seconds), f"{found.fresh_share:.2%} of {found.objective:.2%}", state


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
