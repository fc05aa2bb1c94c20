"""Regions: supply, its use by the desired deployments, and the infrastructure's reports."""

from collections.abc import Mapping
from heapq import nsmallest
from typing import Annotated

from fastapi import APIRouter, Path, Query

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.regions.drains import drains_by_region
from ipnext.api.services.hidden_fields import filter_replicas, filter_states, redact_drains
from ipnext.api.services.region_states import States
from ipnext.errors import NotFound, Unavailable
from ipnext.model.api.resources import HardwareUse, ListPage, RegionView
from ipnext.model.deployment.replica import Replica
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.regions.drain import DrainView
from ipnext.model.value import Name
from ipnext.store.paging import no_cursor, page_of
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/regions", tags=["regions"], route_class=GuardedRoute)


@router.get("", dependencies=[may("fleet.read")], summary="List regions")
def list_regions(rooms: Rooms, visible: Visible, after: After = None, limit: Limit = 50) -> ListPage[RegionView]:
    """Every region of the fleet and of the infrastructure. One that does not answer is shown as not reachable.

    Of its replicas at most twenty are shown, those that do not answer first; `GET /v1/regions/{region}/replicas` lists
    all.
    """
    states = rooms.observer.states()
    with rooms.store.read() as unit:
        fleet, used = fleet_or_none(unit), unit.units_running()
        drains = redact_drains(drains_by_region(unit, rooms.lifecycle, states), visible)
        shown = filter_states(states, unit, visible)
        views = region_views(fleet, used, shown, drains, gateways=rooms.settings.gateways)
    start = 0
    if after is not None:
        names = [view.region for view in views]
        if after not in names:
            raise no_cursor(after)
        start = names.index(after) + 1
    return view_page(
        page_of(views[start : start + limit + 1], limit, key=lambda view: view.region, value=lambda view: view)
    )


@router.get("/{region}/replicas", dependencies=[may("fleet.read")], summary="List a region's replicas")
def list_replicas(
    region: Annotated[Name, Path(description="Name of the region.")],
    rooms: Rooms,
    visible: Visible,
    model: Annotated[Name | None, Query(description="Only replicas of this model.")] = None,
    after: After = None,
    limit: Limit = 100,
) -> ListPage[Replica]:
    """List what the region reports of each replica, by id. 503 if it does not answer, 404 for an unknown region."""
    states = rooms.observer.states()
    if region not in states:
        msg = f"region {region!r} is not known; known: {', '.join(sorted(states)) or 'none'}"
        raise NotFound(msg)
    state = states[region]
    if state is None:
        msg = f"region {region} does not answer; try again"
        raise Unavailable(msg)
    mine = state.replicas if model is None else tuple(r for r in states.of(model) if r.key.region == region)
    if visible is not None:
        with rooms.store.read() as unit:
            mine = filter_replicas(mine, unit, visible, of=model)
    found = nsmallest(limit + 1, (r for r in mine if after is None or r.id > after), key=lambda r: r.id)
    return view_page(page_of(found, limit, key=lambda replica: replica.id, value=lambda replica: replica))


def fleet_or_none(unit: Repository) -> FleetSpec | None:
    """Return the fleet's spec, or None before the first apply."""
    try:
        return unit.fleet().spec
    except NotFound:
        return None


def region_views(
    fleet: FleetSpec | None,
    used: Mapping[tuple[str, str], float],
    states: States,
    drains: Mapping[str, DrainView] | None = None,
    *,
    gateways: Mapping[str, str] | None = None,
) -> tuple[RegionView, ...]:
    """Return regions in the fleet's order; regions that only the infrastructure knows come last.

    `used` maps (region, hardware) to the units of the desired deployments, `gateways` regions to the addresses that the
    operator named.
    """
    known = fleet.regions if fleet is not None else ()
    names = (*known, *(region for region in states if region not in known))
    views = (_with_gateway(_view(name, fleet, used, states), gateways or {}) for name in names)
    return tuple(view.model_copy(update={"drain": (drains or {}).get(view.region)}) for view in views)


def _with_gateway(view: RegionView, gateways: Mapping[str, str]) -> RegionView:
    """Return a region that answers with the address of its gateway that the operator named, if there is one."""
    named = gateways.get(view.region)
    if named is None or not view.reachable:
        return view
    return view.model_copy(update={"gateway_url": named.rstrip("/"), "gateway_is_named": True})


def _view(name: str, fleet: FleetSpec | None, used: Mapping[tuple[str, str], float], states: States) -> RegionView:
    items = [item for item in fleet.supply if item.region == name] if fleet is not None else []
    supply = tuple(
        HardwareUse(
            hardware=item.hardware,
            units=item.units,
            used=round(taken := used.get((name, item.hardware), 0.0), 6),
            free=round(item.units - taken, 6),
            unit_cost=item.unit_cost,
        )
        for item in items
    )
    state, summary = states.get(name), states.summary(name)
    if state is None or summary is None:
        return RegionView(region=name, reachable=False, supply=supply)
    return RegionView(
        region=name,
        reachable=True,
        gateway_url=state.gateway_url,
        supply=supply,
        replicas=summary.shown,
        replica_count=len(state.replicas),
        phases=summary.phases,
        routed_models=len(state.routes),
        requests=summary.requests,
        errors=summary.errors,
        access_behind_seconds=state.access_behind_seconds,
    )
