"""Validators: the built-in ones and plug-ins, with those that were refused."""

from fastapi import APIRouter

from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.model.api.plugins import ValidatorView

router = APIRouter(prefix="/v1/validators", tags=["operations"], route_class=GuardedRoute)


@router.get("", dependencies=[may("fleet.read")], summary="List validators")
def list_validators(rooms: Rooms) -> tuple[ValidatorView, ...]:
    """Every validator in the order in which they run, then plug-ins that were refused or taken, with the reason."""
    return rooms.plugins.validator_views
