"""Stages of changes: the built-in ones and plug-ins, with those that were refused."""

from fastapi import APIRouter

from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.model.api.plugins import StageView

router = APIRouter(prefix="/v1/stages", tags=["operations"], route_class=GuardedRoute)


@router.get("", dependencies=[may("fleet.read")], summary="List stages")
def list_stages(rooms: Rooms) -> tuple[StageView, ...]:
    """Built-in stages in their order, then those of other distributions, refused ones with the reason."""
    return rooms.stage_kinds.views
