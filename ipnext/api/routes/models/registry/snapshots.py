"""Single snapshots: lineage, holds, and their deletion."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, ModelName, Rooms, User, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.model.api.lineage import HoldRequest, HoldView, SnapshotLineage
from ipnext.model.api.resources import ListPage
from ipnext.model.registry.registry import Snapshot
from ipnext.model.value import Name
from ipnext.platform.collection import Retention
from ipnext.store.paging import Page
from ipnext.store.records import SnapshotHold

listing = APIRouter(prefix="/v1/holds", tags=["snapshots"], route_class=GuardedRoute)
router = APIRouter(prefix="/v1/models", tags=["snapshots"], route_class=GuardedRoute)

PartName = Annotated[Name, Path(description="Name of the part.")]
Number = Annotated[int, Path(ge=1, lt=2**31, description="Number of a snapshot of the part.")]
OfModel = Annotated[Name | None, Query(description="Only holds of this model.")]
OfPart = Annotated[Name | None, Query(description="Only snapshots of this part.")]
LineageLimit = Annotated[int, Query(ge=1, le=100, description="Items of the page, 1 to 100.")]
HoldLimit = Annotated[int, Query(ge=1, le=1000, description="Items of the page, 1 to 1000.")]


@listing.get("", dependencies=[may("models.list")], summary="List holds of snapshots")
def list_holds(
    rooms: Rooms, visible: Visible, model: OfModel = None, after: After = None, limit: HoldLimit = 50
) -> ListPage[HoldView]:
    """By model, part and number; holds of other owners' models are left out."""
    with rooms.store.read(visible) as unit:
        return view_page(unit.hold_page(model=model, after=after, limit=limit).map(_view))


@router.get("/{name}/lineage", dependencies=[may("models.read")], summary="List the lineage of a model's snapshots")
def list_lineage(
    name: ModelName, rooms: Rooms, part: OfPart = None, after: After = None, limit: LineageLimit = 20
) -> ListPage[SnapshotLineage]:
    """By part, the newest of each part first: training run, derived snapshots, generations and placements of each."""
    with rooms.store.read() as unit:
        page = unit.snapshot_page(name, part=part, after=after, limit=limit)
        found = unit.lineages(name, [(one.part, one.number) for one in page.items])
        return view_page(Page(found, page.next))


@router.get(
    "/{name}/snapshots/{part}/{number}/lineage", dependencies=[may("models.read")], summary="Read a snapshot's lineage"
)
def read_lineage(name: ModelName, part: PartName, number: Number, rooms: Rooms) -> SnapshotLineage:
    """Return the training run, parent, derived snapshots, generations and placements of a snapshot."""
    with rooms.store.read() as unit:
        unit.snapshot(name, part, number)
        return unit.lineages(name, [(part, number)])[0]


@router.put("/{name}/snapshots/{part}/{number}/hold", dependencies=[may("models.steer")], summary="Hold a snapshot")
def hold_snapshot(
    name: ModelName, part: PartName, number: Number, request: HoldRequest, rooms: Rooms, user: User
) -> HoldView:
    """Keep its bytes, and those of its parents, until the hold is released.

    A held one gets the newest reason. 409 if its bytes were released before.
    """
    with rooms.store.begin(name) as unit:
        found = unit.hold_snapshot(name, part, number, by=user, reason=request.reason)
        unit.note_audit(after={"part": part, "snapshot": number, "held": True}, reason=request.reason)
        unit.add_event(name, "SnapshotHeld", f"snapshot {number} of part {part}: {request.reason}")
    return _view(found)


@router.delete(
    "/{name}/snapshots/{part}/{number}/hold", dependencies=[may("models.steer")], summary="Release a snapshot's hold"
)
def release_hold(
    name: ModelName,
    part: PartName,
    number: Number,
    rooms: Rooms,
    reason: Annotated[str, Query(max_length=500, description="Why, for the audit.")] = "",
) -> HoldView:
    """Let retention decide again. 404 if the snapshot is not held."""
    with rooms.store.begin(name) as unit:
        unit.snapshot(name, part, number)
        found = unit.release_hold(name, part, number)
        unit.note_audit(before=_view(found), after={"part": part, "snapshot": number, "held": False}, reason=reason)
        unit.add_event(name, "SnapshotReleased", f"snapshot {number} of part {part}: {reason or 'no reason given'}")
    return _view(found)


@router.delete("/{name}/snapshots/{part}/{number}", dependencies=[may("models.publish")], summary="Delete a snapshot")
def delete_snapshot(name: ModelName, part: PartName, number: Number, rooms: Rooms) -> Snapshot:
    """Release the bytes of a snapshot that nothing needs, whatever its age; a collection removes them later.

    Its row stays in the history. 409 names what needs it: a generation that serves or can be rolled back to, a hold, a
    delta of it, an open change, or a version of a source that waits.
    """
    with rooms.store.begin(name) as unit:
        found = unit.delete_snapshot(name, part, number, keep=Retention.of(rooms.settings).snapshots)
        unit.note_audit(before={"part": part, "snapshot": number, "digest": found.digest})
        unit.add_event(name, "SnapshotDeleted", f"snapshot {number} of part {part}")
    return found


def _view(hold: SnapshotHold) -> HoldView:
    return HoldView(**dict(hold))
