"""Drains: regions are taken out of service, and restored."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query

from ipnext import names
from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.services.hidden_fields import redact_drain
from ipnext.api.workflow_engine.port import Lifecycle
from ipnext.errors import Conflict, InvalidInput, NotFound
from ipnext.model.api.resources import ListPage
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.regions.drain import Drain, DrainRequest, DrainView, ReturnRequest
from ipnext.model.value import Name
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/regions", tags=["regions"], route_class=GuardedRoute)
listing = APIRouter(prefix="/v1/drains", tags=["regions"], route_class=GuardedRoute)

Reports = Mapping[str, RegionState | None]
"""Region -> its report; None, or absent, if it does not answer or was not observed."""

RegionName = Annotated[Name, Path(description="Name of the region.")]


@router.post(
    "/{region}/drain", dependencies=[may("regions.drain")], status_code=202, summary="Take a region out of service"
)
def drain_region(region: RegionName, request: DrainRequest, rooms: Rooms, visible: Visible) -> DrainView:
    """Record a drain: it is carried out, even while the workflow engine is down. One under way is answered.

    Planned, it is checked first: `refused` names what would stay unserved. A disaster takes the region's traffic away
    at once. 409 if no other region with supply would be left.
    """
    with rooms.store.begin() as unit:
        check_region_left(unit.fleet().spec, unit.drains(), region, in_use=bool(unit.find_models_in(region)))
        drain = unit.add_drain(region, disaster=request.disaster, force=request.force, reason=request.reason)
        unit.note_audit(after=request, reason=request.reason, change_id=drain.id)
    rooms.outbox.wake()
    return redact_drain(drain_view(drain, rooms.lifecycle, rooms.observer.states() if drain.lost else {}), visible)


@router.post(
    "/{region}/return", dependencies=[may("regions.drain")], status_code=202, summary="Bring a region back into service"
)
def return_region(region: RegionName, request: ReturnRequest, rooms: Rooms, visible: Visible) -> DrainView:
    """Ask a drained region back: its supply counts again, and a replan is asked for. Nothing moves before that plan.

    A region that was lost has to answer first. 404 if it is not drained.
    """
    with rooms.store.begin() as unit:
        drain = unit.ask_return(region, reason=request.reason)
        unit.note_audit(reason=request.reason, change_id=drain.id)
    rooms.outbox.wake()
    return redact_drain(drain_view(drain, rooms.lifecycle, rooms.observer.states() if drain.lost else {}), visible)


@router.get("/{region}/drain", dependencies=[may("regions.read")], summary="Follow a drain")
def read_drain(region: RegionName, rooms: Rooms, visible: Visible) -> DrainView:
    """Read the newest drain of a region, whatever its outcome; 404 before the first."""
    with rooms.store.read() as unit:
        drain = unit.drain(region)
    if drain is None:
        msg = f"region {region!r} was never drained"
        raise NotFound(msg)
    view = drain_view(drain, rooms.lifecycle, rooms.observer.states() if drain.lost else {})
    return redact_drain(view, visible)


@listing.get("", dependencies=[may("fleet.read")], summary="List drains")
def list_drains(
    rooms: Rooms,
    visible: Visible,
    region: Annotated[Name | None, Query(description="Only drains of this region.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> ListPage[DrainView]:
    """Newest first, those that are over too: what was asked and why, where it stands, what came of it."""
    with rooms.store.read() as unit:
        page = unit.drain_page(region, after=after, limit=limit)
    states = rooms.observer.states() if any(drain.lost for drain in page.items) else {}
    return view_page(page.map(lambda drain: redact_drain(drain_view(drain, rooms.lifecycle, states), visible)))


def check_region_left(fleet: FleetSpec, drains: tuple[Drain, ...], region: str, *, in_use: bool = False) -> None:
    """Refuse a drain after which no region with supply is in service. Raises InvalidInput, Conflict.

    A region that the fleet no longer has can be drained while models use it (`in_use`).
    """
    if region not in fleet.regions and not in_use:
        msg = f"region: the fleet has no region {region!r}; allowed: {', '.join(fleet.regions)}"
        raise InvalidInput(msg, field="region", value=region, allowed=fleet.regions)
    out = {drain.region for drain in drains} | {region}
    if not any(item.units > 0 for item in fleet.supply if item.region not in out):
        others = sorted(out - {region})
        told = f" ({', '.join(others)} out of service)" if others else ""
        msg = f"region {region!r} is the last one with supply{told}; undrain another one first"
        raise Conflict(msg)


def drain_view(drain: Drain, lifecycle: Lifecycle, states: Reports) -> DrainView:
    """Return a drain with the link to its runs.

    For a lost region with its report in `states`, since it may still answer.
    """
    url = lifecycle.run_url(names.drain_workflow_id(drain.region), "")
    state = states.get(drain.region) if drain.lost else None
    running = None if state is None else len(state.replicas)
    return DrainView.of(drain, run_url=url.rstrip("/"), replicas_running=running)


def drains_by_region(unit: Repository, lifecycle: Lifecycle, states: Reports) -> dict[str, DrainView]:
    """Return the drains of regions that are out of service, or are being drained or restored."""
    return {drain.region: drain_view(drain, lifecycle, states) for drain in unit.drains()}
