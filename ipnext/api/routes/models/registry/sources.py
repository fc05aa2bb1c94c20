"""Sources: list, read, pause, resume, poll now, and push a version."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Path, Query

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import (
    After,
    IdempotencyKey,
    Limit,
    ModelName,
    PlatformAdapters,
    Rooms,
    User,
    WantedLabels,
    view_page,
)
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.schema import OF_ARTIFACTS
from ipnext.api.services.checks.retirement import check_in_service
from ipnext.api.services.source_views import view_sources, view_version
from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.stores.locations import open_source
from ipnext.errors import Conflict, InvalidInput
from ipnext.model.api.resources import ListPage
from ipnext.model.api.sources import PushedVersion, SourceRequest, SourceView, VersionView
from ipnext.model.registry.sources import LONGEST_KEY, FoundVersion
from ipnext.model.value import Name
from ipnext.sources.access import ReadAccess
from ipnext.store.paging import Page
from ipnext.store.records import SourceRecord, VersionRecord
from ipnext.store.registry.artifacts import sizes_of

listing = APIRouter(prefix="/v1/sources", tags=["sources"], route_class=GuardedRoute)
router = APIRouter(prefix="/v1/models", tags=["sources"], route_class=GuardedRoute)

SourceName = Annotated[Name, Path(description="Name of the source in the model's manifest.")]
OfModel = Annotated[Name | None, Query(description="Only sources of this model.")]


@listing.get("", dependencies=[may("models.list")], summary="List sources")
def list_sources(
    rooms: Rooms,
    visible: Visible,
    labels: WantedLabels,
    model: OfModel = None,
    after: After = None,
    limit: Limit = 50,
) -> ListPage[SourceView]:
    """By model and name, with cursor, last pick-up and last error; sources of other owners' models are left out.

    `label` is one of the model.
    """
    with rooms.store.read(visible) as unit:
        page = unit.source_page(model=model, after=after, limit=limit, labels=dict(labels))
        return view_page(Page(view_sources(unit, rooms.lifecycle.run_url, page.items), page.next))


@router.get("/{name}/sources/{source}", dependencies=[may("models.read")], summary="Read a source")
def read_source(name: ModelName, source: SourceName, rooms: Rooms) -> SourceView:
    """Read where the watch of a source stands."""
    with rooms.store.read() as unit:
        return view_sources(unit, rooms.lifecycle.run_url, (unit.source(name, source),))[0]


@router.get("/{name}/sources/{source}/versions", dependencies=[may("models.read")], summary="List a source's versions")
def list_versions(
    name: ModelName, source: SourceName, rooms: Rooms, after: After = None, limit: Limit = 50
) -> ListPage[VersionView]:
    """Newest first: what the source found, and what became of it."""
    with rooms.store.read() as unit:
        page = unit.version_page(name, source, after=after, limit=limit)
        return view_page(Page(tuple(view_version(unit, found) for found in page.items), page.next))


@router.post("/{name}/sources/{source}/pause", dependencies=[may("models.steer")], summary="Pause a source")
def pause_source(name: ModelName, source: SourceName, request: SourceRequest, rooms: Rooms, user: User) -> SourceView:
    """Poll it no more, and publish nothing of it, until it is resumed. Changes that it has caused go on."""
    with rooms.store.begin(name) as unit:
        found = unit.pause_source(name, source, by=user, reason=request.reason)
        unit.note_audit(after={"source": source, "paused": True}, reason=request.reason)
        return view_sources(unit, rooms.lifecycle.run_url, (found,))[0]


@router.post("/{name}/sources/{source}/resume", dependencies=[may("models.steer")], summary="Resume a source")
def resume_source(name: ModelName, source: SourceName, request: SourceRequest, rooms: Rooms) -> SourceView:
    """Poll it again from its cursor on: of what came while it was paused, the newest is published.

    409 if it is not paused.
    """
    with rooms.store.begin(name) as unit:
        found = unit.resume_source(name, source)
        unit.note_audit(after={"source": source, "paused": False}, reason=request.reason)
        view = view_sources(unit, rooms.lifecycle.run_url, (found,))[0]
    rooms.source_wakes.wake()
    return view


@router.post(
    "/{name}/sources/{source}/poll", dependencies=[may("models.publish")], status_code=202, summary="Poll a source now"
)
def poll_source(name: ModelName, source: SourceName, request: SourceRequest, rooms: Rooms) -> SourceView:
    """Ask for a poll ahead of the interval. 409 if it is paused."""
    with rooms.store.begin(name) as unit:
        if unit.source(name, source).paused_at is not None:
            msg = f"source {source!r} of model {name!r} is paused; resume it first"
            raise Conflict(msg)
        found = unit.wake_source(name, source)
        unit.note_audit(after={"source": source, "polled": True}, reason=request.reason)
        view = view_sources(unit, rooms.lifecycle.run_url, (found,))[0]
    rooms.source_wakes.wake()
    return view


@router.post(
    "/{name}/sources/{source}/versions",
    dependencies=[may("models.publish")],
    status_code=202,
    summary="Push a version",
    responses=OF_ARTIFACTS,
)
def push_version(
    name: ModelName,
    source: SourceName,
    version: PushedVersion,
    rooms: Rooms,
    key: IdempotencyKey = "",
) -> VersionView:
    """Announce a version to a source of kind `push`. The same key again is the same version.

    It is recorded, and published if the promotion rule lets it pass and no newer one comes first.
    """
    with rooms.store.read() as unit:
        check_in_service(unit, unit.model(name))
        target = unit.source(name, source)
    _check_pushed(target)
    place, parent = _place(rooms, target, version)
    found = FoundVersion(
        key=version.key or key or (place if len(place) <= LONGEST_KEY else hashlib.sha256(place.encode()).hexdigest()),
        place=place,
        trained_at=version.trained_at,
        tags=version.tags,
        metrics=version.metrics,
        lineage=version.lineage,
    )
    with rooms.store.begin(name) as unit:
        check_in_service(unit, unit.model(name))  # again: a retirement may have been recorded while the store was read
        _check_pushed(unit.source(name, source))
        recorded = unit.add_version(name, source, found, parent=parent)
        _check_same(recorded, found)
        unit.note_audit(after={"source": source, "version": found.key})
        view = view_version(unit, recorded)
    rooms.source_wakes.wake()
    return view


def _check_pushed(source: SourceRecord) -> None:
    if source.kind != "push":
        msg = f"source {source.name!r} of model {source.model!r} is of kind {source.kind}; allowed: push"
        raise Conflict(msg)


def _check_same(recorded: VersionRecord, given: FoundVersion) -> None:
    """Refuse another place under a known key: its content would be lost silently. Raises Conflict."""
    if recorded.version.place != given.place:
        msg = f"version {given.key!r} was pushed with another place, {recorded.version.place}; choose another key"
        raise Conflict(msg)


def _place(rooms: PlatformAdapters, source: SourceRecord, version: PushedVersion) -> tuple[str, str | None]:
    """Return the uri of a pushed version, and the digest of its parent if it is a delta in the artifact store.

    The uri is of a snapshot in the artifact store, or of one that may be read. Raises InvalidInput, PathNotAllowed or
    ArtifactMissing.
    """
    if (version.digest is None) == (version.uri is None):
        msg = "exactly one of digest and uri has to stand here"
        raise InvalidInput(msg, field="digest", value=version.digest)
    if version.digest is not None:
        return _keep_stored(rooms, snapshot_uri(rooms.artifacts.uri, version.digest))
    uri = version.uri or ""
    if uri.startswith(f"{rooms.artifacts.uri}/snapshots/"):
        return _keep_stored(rooms, uri)
    access = ReadAccess.of(rooms.settings, source.owner, source.reach)
    open_source(uri, roots=access.roots, buckets=access.buckets, endpoint_url=access.s3_endpoint_url)
    return uri, None


def _keep_stored(rooms: PlatformAdapters, uri: str) -> tuple[str, str | None]:
    """Keep a snapshot in the artifact store until its version is recorded: the use is written before a look."""
    manifest = rooms.artifacts.manifest(uri)
    with rooms.store.begin_free(()) as unit:
        unit.touch_artifacts(sizes_of(manifest))
    rooms.artifacts.manifest(uri)
    return uri, manifest.parent if manifest.is_delta else None
