"""Sources and their versions in the form of the API."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ipnext import names
from ipnext.model.api.sources import SourceView, VersionView
from ipnext.store.records import SourceRecord, VersionRecord
from ipnext.store.repository import Repository

RunUrl = Callable[[str, str], str]
"""(workflow id, run id) -> link to a run."""


def view_sources(unit: Repository, run_url: RunUrl, found: Sequence[SourceRecord]) -> tuple[SourceView, ...]:
    """Return sources with the numbers of their versions, and the links to their watches."""
    counts = unit.count_versions([(source.model, source.name) for source in found])
    return tuple(_view(run_url, source, counts[source.model, source.name]) for source in found)


def _view(run_url: RunUrl, source: SourceRecord, versions: Mapping[str, int]) -> SourceView:
    return SourceView(
        model=source.model,
        name=source.name,
        part=source.part,
        kind=source.kind,
        upstream=source.upstream,
        every=source.spec.every,
        spec=source.spec,
        state=_state(source),
        cursor=source.cursor,
        last_poll=source.polled_at,
        last_error=source.error,
        failures=source.failures,
        last_pick_up=source.picked_at,
        last_version=source.picked_key,
        paused_by=source.paused_by,
        pause_reason=source.pause_reason,
        versions=versions,
        run_url=run_url(names.watch_workflow_id(source.kind, source.upstream), ""),
    )


def _state(source: SourceRecord) -> Literal["watching", "waiting", "failing", "paused"]:
    if source.paused_at is not None:
        return "paused"
    if source.failures:
        return "failing"
    return "watching" if source.polled_at is not None else "waiting"


def view_version(unit: Repository, found: VersionRecord) -> VersionView:
    """Return a version with the change that published it."""
    change = None if found.change_id is None else unit.find_change(found.change_id)
    version = found.version
    return VersionView(
        source=found.source,
        part=found.part,
        key=version.key,
        place=version.place,
        state=found.state,
        message=found.message or (change.message if change else ""),
        trained_at=version.trained_at,
        found_at=found.found_at,
        ended_at=found.ended_at,
        due_at=found.due_at,
        digest=found.digest,
        change_id=found.change_id,
        generation=change.generation if change else None,
        change_state=change.state if change else None,
        tags=version.tags,
        metrics=version.metrics,
        lineage=version.lineage,
    )
