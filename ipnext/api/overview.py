"""One answer with everything the page shows."""

from datetime import UTC, datetime

from fastapi import APIRouter

from ipnext.api.facts import all_facts
from ipnext.api.lifecycle import change_view
from ipnext.api.plans import newest_replan, plan_in_force
from ipnext.api.platform import Rooms
from ipnext.api.regions import fleet_or_none, region_views
from ipnext.api.status import model_view
from ipnext.model.registry import Generation
from ipnext.model.resource import EventView, ModelOverview, Overview
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/overview", tags=["overview"])

GENERATIONS = 8
CHANGES = 25
EVENTS = 40


@router.get("", summary="Read everything the page shows")
def overview(rooms: Rooms) -> Overview:
    """Models with their newest generations, regions, recent changes and events, and the plan in force."""
    with rooms.store.read() as unit:
        facts = all_facts(unit)
        generations = {each.record.name: _newest(unit, each.record.name) for each in facts}
        fleet, deployments, plan = fleet_or_none(unit), unit.deployments(), plan_in_force(unit)
        events, replan = unit.events(limit=EVENTS), newest_replan(unit)
    states = rooms.observer.states()
    changes = sorted((c for each in facts for c in each.changes), key=lambda c: c.created_at, reverse=True)
    return Overview(
        at=datetime.now(UTC),
        models=tuple(
            ModelOverview(model=model_view(each, states), generations=generations[each.record.name]) for each in facts
        ),
        regions=region_views(fleet, deployments, states),
        changes=tuple(change_view(change, rooms.lifecycle) for change in changes[:CHANGES]),
        events=tuple(EventView(**dict(event)) for event in events),
        plan=plan,
        replan=replan,
        temporal_ui_url=rooms.settings.temporal_ui_url,
    )


def _newest(unit: Repository, model: str) -> tuple[Generation, ...]:
    """Without their layouts: the page shows the one that serves."""
    return tuple(g.model_copy(update={"layout": None}) for g in unit.generations(model)[:GENERATIONS])
