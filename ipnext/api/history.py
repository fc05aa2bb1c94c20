"""The history of models: changes, generations, snapshots, reports, transitions, events."""

from fastapi import APIRouter

from ipnext.api.lifecycle import change_view
from ipnext.api.platform import GenerationNumber, Limit, ModelName, RecordId, Rooms
from ipnext.errors import NotFound
from ipnext.model.lifecycle import ValidationReport
from ipnext.model.registry import Generation, Snapshot
from ipnext.model.resource import ChangeView, EventView, TransitionView

router = APIRouter(prefix="/v1", tags=["history"])


@router.get("/changes/{change_id}", summary="Read a change")
def read_change(change_id: RecordId, rooms: Rooms) -> ChangeView:
    """Where a change stands, why, and the link to its run."""
    with rooms.store.read() as unit:
        return change_view(unit.change(change_id), rooms.lifecycle)


@router.get("/models/{name}/changes", summary="List a model's changes")
def list_changes(name: ModelName, rooms: Rooms, limit: Limit = 50) -> list[ChangeView]:
    """Newest first."""
    with rooms.store.read() as unit:
        return [change_view(change, rooms.lifecycle) for change in unit.changes(name, limit=limit)]


@router.get("/models/{name}/generations", summary="List a model's generations")
def list_generations(name: ModelName, rooms: Rooms) -> list[Generation]:
    """Newest first: the snapshot of each part, the state and its reason."""
    with rooms.store.read() as unit:
        return list(unit.generations(name))


@router.get("/models/{name}/snapshots", summary="List a model's snapshots")
def list_snapshots(name: ModelName, rooms: Rooms) -> list[Snapshot]:
    """Every snapshot of every part."""
    with rooms.store.read() as unit:
        return list(unit.snapshots(name))


@router.get("/models/{name}/reports/{generation}", summary="Read a validation report")
def read_report(name: ModelName, generation: GenerationNumber, rooms: Rooms) -> ValidationReport:
    """All checks of a generation with their results. 404 before its validation."""
    with rooms.store.read() as unit:
        unit.generation(name, generation)
        report = unit.report(name, generation)
    if report is None:
        msg = f"generation {generation} of {name!r} was not validated yet"
        raise NotFound(msg)
    return report


@router.get("/models/{name}/transitions", summary="List a model's transitions")
def list_transitions(name: ModelName, rooms: Rooms, limit: Limit = 20) -> list[TransitionView]:
    """Newest first: the waves from one state to another, and how many are done."""
    with rooms.store.read() as unit:
        return [TransitionView(**dict(record)) for record in unit.transitions(name, limit=limit)]


@router.get("/models/{name}/events", summary="List a model's events")
def list_events(name: ModelName, rooms: Rooms, limit: Limit = 100) -> list[EventView]:
    """What happened, in words, newest first."""
    with rooms.store.read() as unit:
        unit.model(name)
        return [EventView(**dict(event)) for event in unit.events(name, limit=limit)]


@router.get("/events", summary="List events of all models")
def list_all_events(rooms: Rooms, limit: Limit = 100) -> list[EventView]:
    """What happened in the whole fleet, newest first."""
    with rooms.store.read() as unit:
        return [EventView(**dict(event)) for event in unit.events(limit=limit)]
