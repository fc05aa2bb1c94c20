"""Publish and roll back: record one change, answer 202; the outbox submits it to the workflow engine."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import anyio.to_thread
from fastapi import APIRouter, Request

from ipnext.api.authorization.caller import Asker
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import ModelName, PlatformAdapters, Rooms, User
from ipnext.api.errors import MAX_ALLOWED
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.requests.identifiers import client_id
from ipnext.api.requests.slots import holder_of
from ipnext.api.requests.turns import Turns
from ipnext.api.routes.regions.freezes import override_freezes
from ipnext.api.schema import OF_ARTIFACTS
from ipnext.api.services.checks.retirement import check_in_service, check_not_retiring
from ipnext.api.workflow_engine.port import change_view
from ipnext.artifacts.layout import digest_in, snapshot_uri
from ipnext.artifacts.stores.locations import readable_for
from ipnext.artifacts.upload import ingest_uri
from ipnext.errors import Conflict, InvalidInput, NotFound, SnapshotDenied
from ipnext.model.access.rights import Principal
from ipnext.model.api.resources import ChangeView, PublishPart, PublishRequest, RollbackRequest
from ipnext.model.lifecycle.changes.change import Change, ChangeKind
from ipnext.model.registry.registry import SnapshotSource
from ipnext.sources.training_record import trained_at_of
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.operations.rollback_targets import denied_generations, former_generations, kept_generations
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository
from ipnext.store.unit_of_work import utc_now

router = APIRouter(prefix="/v1/models", tags=["publishing"], route_class=GuardedRoute)

READ_AT_ONCE = 16
"""Publishes that read a snapshot from a directory or bucket at once, a quarter of them for one client; the next ones
wait."""

CLOCKS_DIFFER = timedelta(minutes=5)
"""By which the clock of a training system may be ahead."""

_ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})


@router.post(
    "/{name}/publish",
    dependencies=[may("models.publish")],
    status_code=202,
    summary="Publish new snapshots",
    responses=OF_ARTIFACTS,
)
async def publish(
    name: ModelName, request: PublishRequest, http: Request, rooms: Rooms, user: User, asker: Asker
) -> ChangeView:
    """Record new snapshots of one or more parts as the next generation, and start its rollout.

    Each part is the digest of an uploaded snapshot, or a `file://` or `s3://` uri that the server may read. The answer
    comes once the change is recorded: it is not lost from there on. `changeId` makes a repeated request one change.
    `overrideFreeze`, a reason, lets it pass every freeze; an operator's role is needed for that.
    """
    if all(part.digest is not None for part in request.parts.values()):
        return await anyio.to_thread.run_sync(_publish, name, request, rooms, user, asker)
    return await _readers(http).run(holder_of(asker), _publish, name, request, rooms, user, asker)


def _readers(http: Request) -> Turns:
    """Return the threads that read snapshots from directories and buckets: no other endpoint waits for them."""
    state = http.app.state
    if not hasattr(state, "snapshot_readers"):
        state.snapshot_readers = Turns(READ_AT_ONCE)
    readers: Turns = state.snapshot_readers
    return readers


def _publish(name: str, request: PublishRequest, rooms: PlatformAdapters, user: str, asker: Principal) -> ChangeView:
    change_id = client_id("changeId", request.change_id)
    with rooms.store.read() as unit:
        record = check_in_service(unit, unit.model(name))
        if request.override_freeze is not None:
            rooms.access.require_model(asker, "models.override", unit, name)
    _check_parts(record, request.parts)
    owner = record.manifest.metadata.owner
    _check_trained(request.parts)
    sources = {part: _source(rooms, asker, owner, given) for part, given in request.parts.items()}
    rooms.publisher.check_there(sources)
    with rooms.store.begin(name) as unit:
        check_not_retiring(unit, record)
        change = rooms.publisher.record(unit, name, owner, sources, change_id=change_id)
        digests = {part: source.manifest.digest for part, source in sources.items()}
        after: dict[str, object] = {"generation": change.generation, "snapshots": digests}
        if request.override_freeze is not None and not change.state.final:
            given = override_freezes(unit, change, who=user, reason=request.override_freeze)
            after["overrides"] = list(given.freezes)
        unit.note_audit(change_id=change.id, after=after, reason=request.override_freeze)
    rooms.outbox.wake()
    return change_view(change, rooms.lifecycle)


@router.post(
    "/{name}/rollback",
    dependencies=[may("models.rollback")],
    status_code=202,
    responses=OF_ARTIFACTS,
    summary="Go back to a former generation",
)
def rollback(name: ModelName, request: RollbackRequest, rooms: Rooms) -> ChangeView:
    """Return to a generation that has served, ahead of all that waits, past freezes and pauses.

    A rollout that runs is stopped. Without `generation`: while a rollout is under way the one that serves, else the
    newest other one that has.
    """
    change_id = client_id("changeId", request.change_id)
    with rooms.store.begin(name) as unit:
        record = check_in_service(unit, unit.model(name))
        change = _find_rollback(unit, change_id, name)
        if change is None:
            unfinished = bool(_ROLLS_OUT & unit.open_kinds(name).keys())
            target = _rollback_target(unit, record, request.generation, unfinished=unfinished)
            change = unit.add_change(name, ChangeKind.ROLLBACK, change_id=change_id, generation=target)
            note_waiting(unit, change)
        before = {"generation": record.serving_generation}
        unit.note_audit(change_id=change.id, before=before, after={"generation": change.generation})
    rooms.outbox.wake()
    return change_view(change, rooms.lifecycle)


def _find_rollback(unit: Repository, change_id: str, model: str) -> Change | None:
    """Return the rollback of this id, if it was recorded before: its target was chosen then.

    Conflict if it is another change.
    """
    try:
        change = unit.change(change_id)
    except NotFound:
        return None
    if (change.model, change.kind) != (model, ChangeKind.ROLLBACK):
        taken = f"a {change.kind.value} of {model!r}" if change.model == model else "another change"
        msg = f"changeId: {change_id!r} is already {taken}; choose a new id for each change"
        raise Conflict(msg)
    return change


def _check_parts(record: ModelRecord, given: Iterable[str]) -> None:
    known = tuple(part.name for part in record.manifest.spec.parts)
    for part in given:
        if part not in known:
            msg = f"parts.{part}: model {record.name!r} has no such part; allowed: {', '.join(known)}"
            raise InvalidInput(msg, field=f"parts.{part}", value=part, allowed=known)


def _check_trained(parts: Mapping[str, PublishPart]) -> None:
    """Refuse trainings that end in the future. A clock may be a little ahead: then the publication counts."""
    latest = utc_now() + CLOCKS_DIFFER
    for part, given in parts.items():
        if given.trained_at is not None and given.trained_at > latest:
            field = f"parts.{part}.trainedAt"
            msg = f"{field}: {given.trained_at.isoformat()} is in the future; allowed: until now"
            raise InvalidInput(msg, field=field, value=given.trained_at.isoformat())


def _source(rooms: PlatformAdapters, asker: Principal, owner: str, given: PublishPart) -> SnapshotSource:
    """Return a part's content in the artifact store, announced; the content of a uri is first read into it."""
    found = _read_source(rooms, asker, owner, given)
    return found if given.trained_at is None else found.model_copy(update={"trained_at": given.trained_at})


def _read_source(rooms: PlatformAdapters, asker: Principal, owner: str, given: PublishPart) -> SnapshotSource:
    if given.digest is not None:
        uri = snapshot_uri(rooms.artifacts.uri, given.digest)
        source = SnapshotSource(manifest=rooms.artifacts.manifest(uri), uri=uri)
        rooms.publisher.announce(owner, source.manifest)
        return source
    if (given.uri or "").startswith(f"{rooms.artifacts.uri}/snapshots/"):
        return _read_source(rooms, asker, owner, PublishPart(digest=digest_in(given.uri or "", rooms.artifacts.uri)))
    shared = asker.publishes_for_all
    return ingest_uri(
        rooms.artifacts,
        given.uri or "",
        roots=tuple(map(Path, readable_for(owner, map(str, rooms.settings.artifact_roots), shared=shared))),
        buckets=readable_for(owner, rooms.settings.artifact_buckets, shared=shared),
        endpoint_url=rooms.settings.s3_endpoint_url,
        announce=partial(rooms.publisher.announce, owner),
        sign=lambda digest, envelope: rooms.signatures.keep(digest, envelope, rooms.access.publishable(asker)),
        trained=trained_at_of,
    )


def _rollback_target(unit: Repository, record: ModelRecord, asked: int | None, *, unfinished: bool) -> int:
    """Return the target of a rollback.

    While another generation rolls out (`unfinished`) the serving one is allowed, too.
    """
    serving, kept = record.serving_generation, kept_generations(unit, record.name)
    denied = denied_generations(unit, record.name, kept)
    if asked in denied:
        msg = f"generation {asked} of model {record.name!r} can't serve: {denied[asked]}"
        raise SnapshotDenied(msg)
    if unfinished and serving is not None and serving not in denied and asked in {None, serving}:
        return serving
    served = [number for number in former_generations(kept, serving) if number not in denied]
    if asked is None:
        if not served:
            but = f" ({len(denied)} are denied)" if denied else ""
            msg = f"model {record.name!r} has no former generation that has served{but}; there is nothing to go back to"
            raise Conflict(msg)
        return served[0]
    if asked == serving:
        msg = f"generation: {asked} serves already"
        raise Conflict(msg)
    if asked not in served:
        allowed = [str(number) for number in served[:MAX_ALLOWED]]
        msg = f"generation: {asked} is not a former generation that has served; allowed: {', '.join(allowed) or 'none'}"
        raise InvalidInput(msg, field="generation", value=asked, allowed=allowed)
    return asked
