"""The history of models: changes, generations, snapshots, reports, transitions, events."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import StreamingResponse

from ipnext import names
from ipnext.api.authorization.caller import Asker, Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.authorization.listener import listener_of
from ipnext.api.dependencies import After, GenerationNumber, Limit, ModelName, RecordId, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.schema import OF_SHARED
from ipnext.api.services.change_views import add_shadow, add_stages
from ipnext.api.workflow_engine.port import change_view
from ipnext.errors import NotFound
from ipnext.model.api.resources import ChangeView, EventView, ListPage, SnapshotView, TransitionView
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.model.value import Name
from ipnext.store.paging import ordinal_of
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1", tags=["history"], route_class=GuardedRoute)


@router.get("/changes/{change_id}", dependencies=[may("models.read")], summary="Read a change")
def read_change(change_id: RecordId, rooms: Rooms) -> ChangeView:
    """Where a change stands, why, and the link to its run. `again`: the change that carries it out once more."""
    with rooms.store.read() as unit:
        change = unit.change(change_id)
        again = unit.find_change(names.again_id(change.model, change.sequence)) if change.state.final else None
        shadow, stages = unit.stored_shadow(change.model), unit.change_stages([change_id])
    view = add_shadow(change_view(change, rooms.lifecycle), shadow)
    view = add_stages(view, stages.get(change_id, ()))
    return view if again is None else view.model_copy(update={"again": again.id})


@router.get("/changes", dependencies=[may("models.list")], summary="List changes of all models")
def list_all_changes(
    rooms: Rooms, visible: Visible, state: ChangeState | None = None, after: After = None, limit: Limit = 50
) -> ListPage[ChangeView]:
    """In the order of recording, the last first."""
    with rooms.store.read(visible) as unit:
        page = unit.change_page(state=state, after=after, limit=limit)
    return view_page(page.map(lambda change: change_view(change, rooms.lifecycle)))


@router.get("/models/{name}/changes", dependencies=[may("models.read")], summary="List a model's changes")
def list_changes(name: ModelName, rooms: Rooms, after: After = None, limit: Limit = 50) -> ListPage[ChangeView]:
    """Newest first."""
    with rooms.store.read() as unit:
        page, shadow = unit.change_page(name, after=after, limit=limit), unit.stored_shadow(name)
        stages = unit.change_stages([change.id for change in page.items])

    def view(change: Change) -> ChangeView:
        return add_stages(add_shadow(change_view(change, rooms.lifecycle), shadow), stages.get(change.id, ()))

    return view_page(page.map(view))


@router.get("/models/{name}/generations", dependencies=[may("models.read")], summary="List a model's generations")
def list_generations(name: ModelName, rooms: Rooms, after: After = None, limit: Limit = 50) -> ListPage[Generation]:
    """Newest first: the snapshot of each part, the state and its reason."""
    with rooms.store.read() as unit:
        return view_page(unit.generation_page(name, after=after, limit=limit))


@router.get("/models/{name}/snapshots", dependencies=[may("models.read")], summary="List a model's snapshots")
def list_snapshots(
    name: ModelName,
    rooms: Rooms,
    part: Annotated[Name | None, Query(description="Only snapshots of this part.")] = None,
    after: After = None,
    limit: Limit = 50,
) -> ListPage[SnapshotView]:
    """By part, the newest of each part first. `created_at` is when it was published."""
    with rooms.store.read() as unit:
        page = unit.snapshot_page(name, part=part, after=after, limit=limit)
        views = {(view.part, view.number): view for view in _views(unit, name, page.items)}
    return view_page(page.map(lambda snapshot: views[snapshot.part, snapshot.number]))


@router.get("/models/{name}/snapshots/{part}/{number}", dependencies=[may("models.read")], summary="Read a snapshot")
def read_snapshot(
    name: ModelName,
    part: Annotated[Name, Path(description="Name of the part.")],
    number: Annotated[int, Path(ge=1, lt=2**31, description="Number of a snapshot of the part.")],
    rooms: Rooms,
) -> SnapshotView:
    """One snapshot with its manifest, and when it was trained, published, and first served each region."""
    with rooms.store.read() as unit:
        return _views(unit, name, [unit.snapshot(name, part, number)])[0]


def _views(unit: Repository, model: str, found: Sequence[Snapshot]) -> Sequence[SnapshotView]:
    servings = unit.first_servings(model, [(snapshot.part, snapshot.number) for snapshot in found])
    return [SnapshotView(**dict(snapshot), servings=servings[snapshot.part, snapshot.number]) for snapshot in found]


@router.get(
    "/models/{name}/reports/{generation}", dependencies=[may("models.read")], summary="Read a validation report"
)
def read_report(name: ModelName, generation: GenerationNumber, rooms: Rooms) -> ValidationReport:
    """All checks of a generation with their results. 404 before its validation."""
    with rooms.store.read() as unit:
        unit.generation(name, generation)
        report = unit.report(name, generation)
    if report is None:
        msg = f"generation {generation} of {name!r} was not validated yet"
        raise NotFound(msg)
    return report


@router.get("/models/{name}/transitions", dependencies=[may("models.read")], summary="List a model's transitions")
def list_transitions(name: ModelName, rooms: Rooms, after: After = None, limit: Limit = 20) -> ListPage[TransitionView]:
    """Newest first: the waves from one state to another, and how many are done."""
    with rooms.store.read() as unit:
        page = unit.transition_page(name, after=after, limit=limit)
    return view_page(page.map(lambda record: TransitionView.model_validate(record, from_attributes=True)))


@router.get("/models/{name}/events", dependencies=[may("models.read")], summary="List a model's events")
def list_events(name: ModelName, rooms: Rooms, after: After = None, limit: Limit = 100) -> ListPage[EventView]:
    """List the events of a model in words, newest first."""
    with rooms.store.read() as unit:
        page = unit.event_page(name, after=after, limit=limit)
    return view_page(page.map(lambda event: EventView.model_validate(event, from_attributes=True)))


@router.get("/events", dependencies=[may("models.list")], summary="List events of all models")
def list_all_events(rooms: Rooms, visible: Visible, after: After = None, limit: Limit = 100) -> ListPage[EventView]:
    """List the events of the whole fleet, newest first; without those of other owners' models."""
    with rooms.store.read(visible) as unit:
        page = unit.event_page(after=after, limit=limit)
    return view_page(page.map(lambda event: EventView.model_validate(event, from_attributes=True)))


@router.get(
    "/events/stream",
    dependencies=[may("models.list")],
    summary="Follow the events of all models",
    responses=dict(OF_SHARED),
    response_class=StreamingResponse,
)
async def follow_events(
    rooms: Rooms,
    asker: Asker,
    last_event_id: Annotated[str | None, Header(max_length=20, description="Resume after this event.")] = None,
) -> StreamingResponse:
    """Server-sent events.

    `event` is a line of the history, its id the ordinal; `changed` says that something else changed. With
    `Last-Event-ID` the events since that one come first, at most 1000. A comment is sent after 15 s of silence. 503 if
    200 streams are open, 429 if 50 of them are of the same key or person. A client that reads too slowly is cut off and
    resumes by its id.
    """
    messages = rooms.stream.subscribe(ordinal_of(last_event_id), listener_of(rooms.access, asker))
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(messages, media_type="text/event-stream", headers=headers)
