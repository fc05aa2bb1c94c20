"""Address and authorisation of Temporal's UI: the proxy of `ipnext dev` asks here for each browser."""

from fastapi import APIRouter

from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.model.api.resources import TemporalUi

router = APIRouter(prefix="/v1/temporal-ui", tags=["access"], route_class=GuardedRoute)


@router.get("", dependencies=[may("runs.inspect")], summary="Ask for Temporal's UI")
def get_temporal_ui(rooms: Rooms) -> TemporalUi:
    """Its address. Who is answered may read, start and end all runs there."""
    return TemporalUi(url=rooms.settings.temporal_ui_url)
