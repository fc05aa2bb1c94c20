"""Repairs: users and replicas that were left on another generation are moved back to the serving one."""

from fastapi import APIRouter

from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import ModelName, Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.requests.identifiers import client_id
from ipnext.api.services.checks.retirement import check_not_retiring
from ipnext.api.workflow_engine.port import change_view
from ipnext.errors import Conflict
from ipnext.model.api.resources import ChangeView, RepairRequest
from ipnext.model.lifecycle.changes.change import ChangeKind

router = APIRouter(prefix="/v1/models", tags=["publishing"], route_class=GuardedRoute)


@router.post(
    "/{name}/repair",
    dependencies=[may("models.repair")],
    status_code=202,
    summary="Bring the serving generation about again",
)
def repair_model(name: ModelName, request: RepairRequest, rooms: Rooms) -> ChangeView:
    """Tell every region what the serving generation needs, and move users who get another one. Past pauses and freezes.

    The platform records repairs by itself; asked while one is open, it is the same change. 409 if nothing serves.
    """
    change_id = client_id("changeId", request.change_id)
    with rooms.store.begin(name) as unit:
        record = unit.model(name)
        if record.retired or record.serving_generation is None:
            why = "is retired" if record.retired else "serves no generation yet"
            remedy = "apply its manifest again, then publish" if record.retired else "publish it"
            msg = f"model {name!r} {why}: there is nothing to repair; {remedy}"
            raise Conflict(msg)
        check_not_retiring(unit, record)
        recent = unit.changes(name)
        waiting = next((c for c in recent if c.kind is ChangeKind.REPAIR and not c.state.final), None)
        change = waiting or unit.add_change(name, ChangeKind.REPAIR, change_id=change_id)
        unit.note_audit(change_id=change.id, after={"generation": record.serving_generation})
    rooms.outbox.wake()
    return change_view(change, rooms.lifecycle)
