"""Regions: supply, what the wanted deployments take of it, and what the infrastructure reports."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from fastapi import APIRouter

from ipnext.api.drains import drains_by_region
from ipnext.api.platform import Rooms
from ipnext.api.status import States
from ipnext.errors import NotFound
from ipnext.model.deployment import Deployment
from ipnext.model.drain import DrainView
from ipnext.model.fleet import FleetSpec
from ipnext.model.resource import RegionView, SupplyUse
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/regions", tags=["regions"])


@router.get("", summary="List regions")
def list_regions(rooms: Rooms) -> list[RegionView]:
    """Every region of the fleet and of the infrastructure. One that does not answer is shown as not reachable."""
    with rooms.store.read() as unit:
        fleet, deployments = fleet_or_none(unit), unit.deployments()
        drains = drains_by_region(unit, rooms.lifecycle)
    return list(region_views(fleet, deployments, rooms.observer.states(), drains))


def fleet_or_none(unit: Repository) -> FleetSpec | None:
    """The fleet's spec, or none before the first apply."""
    try:
        return unit.fleet().spec
    except NotFound:
        return None


def region_views(
    fleet: FleetSpec | None,
    deployments: Iterable[Deployment],
    states: States,
    drains: Mapping[str, DrainView] | None = None,
) -> tuple[RegionView, ...]:
    """Regions in the fleet's order; regions that only the infrastructure knows come last."""
    used = _units_used(deployments)
    known = fleet.regions if fleet is not None else ()
    names = (*known, *(region for region in states if region not in known))
    views = (_view(name, fleet, used, states) for name in names)
    return tuple(view.model_copy(update={"drain": (drains or {}).get(view.region)}) for view in views)


def _units_used(deployments: Iterable[Deployment]) -> Mapping[tuple[str, str], float]:
    used: dict[tuple[str, str], float] = defaultdict(float)
    for deployment in deployments:
        used[deployment.key.region, deployment.key.hardware] += deployment.replicas * deployment.units
    return used


def _view(name: str, fleet: FleetSpec | None, used: Mapping[tuple[str, str], float], states: States) -> RegionView:
    items = [item for item in fleet.supply if item.region == name] if fleet is not None else []
    supply = tuple(
        SupplyUse(
            hardware=item.hardware,
            units=item.units,
            used=round(taken := used.get((name, item.hardware), 0.0), 6),
            free=round(item.units - taken, 6),
            unit_cost=item.unit_cost,
        )
        for item in items
    )
    state = states.get(name)
    if state is None:
        return RegionView(region=name, reachable=False, supply=supply)
    return RegionView(
        region=name,
        reachable=True,
        gateway_url=state.gateway_url,
        supply=supply,
        replicas=state.replicas,
        routes=state.routes,
        traffic=state.traffic,
    )
