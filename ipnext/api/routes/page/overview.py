"""One answer with the whole content of the page."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import PlatformAdapters, Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.models.filters import ModelFilter, WantedModels, find_models, fleet_readiness, serves
from ipnext.api.routes.regions.drains import drains_by_region
from ipnext.api.routes.regions.freezes import calendars_of
from ipnext.api.routes.regions.plans import newest_replan, plan_in_force
from ipnext.api.routes.regions.regions import fleet_or_none, region_views
from ipnext.api.schema import NOT_MODIFIED
from ipnext.api.services.change_views import add_shadow, add_stages
from ipnext.api.services.derivative_views import view_derivation
from ipnext.api.services.explanation import explanations_of
from ipnext.api.services.generation_stats import answers_of
from ipnext.api.services.hidden_fields import filter_states, is_plan_shown, redact_drains, redact_plan
from ipnext.api.services.model_facts import ModelFacts, throughputs_of
from ipnext.api.services.region_states import States
from ipnext.api.services.source_views import view_sources
from ipnext.api.services.status import model_view
from ipnext.api.workflow_engine.port import change_view
from ipnext.freezes.evaluation import ChangeScope, frozen
from ipnext.model.api.resources import ChangeView, EventView, ModelOverview, ModelView, Overview
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.manifest.freeze import Frozen
from ipnext.model.registry.profile import PartThroughput
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/overview", tags=["overview"], route_class=GuardedRoute)

GENERATIONS = 8
DERIVATIVES = 8
CHANGES = 25
EVENTS = 40
MARKS_KEPT = 64
_MADE_NOW = frozenset({"lastTransitionTime", "until", "lastPoll"})
"""Fields that may have the time of the answer in place of a recorded one, or change without news."""

EXPLAINED = 10
"""Models of the page that are explained: the first ones, by name, that are not ready."""


@router.get(
    "",
    dependencies=[may("models.list")],
    summary="Read everything the page shows",
    response_model=Overview,
    responses=NOT_MODIFIED,
)
async def overview(request: Request, rooms: Rooms, wanted: WantedModels, visible: Visible) -> Response:
    """Read a page of models with newest generations; regions, recent changes and events, counts, the plan in force.

    The filters are those of `GET /v1/models`. Clients that ask at the same time share one computation.
    """

    def make(states: States) -> bytes:
        return _overview(rooms, states, wanted, visible).model_dump_json(by_alias=True).encode()

    return await rooms.shared.answer(request, ("overview", wanted, visible), make)


async def overview_mark(rooms: PlatformAdapters, visible: frozenset[str] | None, holder: str | None) -> str:
    """Return a mark of the first page of the overview, as a principal that sees these owners is shown it.

    Without filters. Raises Unavailable or RateLimited.
    """
    wanted = ModelFilter()

    def make(states: States) -> bytes:
        return _overview(rooms, states, wanted, visible).model_dump_json(by_alias=True).encode()

    found = await rooms.shared.get(("overview", wanted, visible), make, holder=holder)
    return await anyio.to_thread.run_sync(_mark_of, found.body)


@lru_cache(maxsize=MARKS_KEPT)
def _mark_of(body: bytes) -> str:
    found = json.loads(body, object_hook=lambda fields: {k: v for k, v in fields.items() if k not in _MADE_NOW})
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _overview(rooms: PlatformAdapters, states: States, wanted: ModelFilter, visible: frozenset[str] | None) -> Overview:
    with rooms.store.read(visible) as unit:
        page = find_models(unit, states, wanted)
        facts, names = page.items, [each.record.name for each in page.items]
        readiness = fleet_readiness(unit, states)
        held = _frozen(unit, facts, datetime.now(UTC))
        generations = unit.recent_generations(names, limit=GENERATIONS)
        rates = throughputs_of(unit, facts)
        sources = view_sources(unit, rooms.lifecycle.run_url, unit.sources_of(names))
        shadows, derivations = unit.shadows(names), unit.recent_derivations(names, limit=DERIVATIVES)
        views = {name: _view(each, states, rates[name]) for name, each in zip(names, facts, strict=True)}
        unready = [each for each in facts if each.changes and not serves(views[each.record.name].status.conditions)]
        explanations = explanations_of(unit, unready[:EXPLAINED], states)
        drains = redact_drains(drains_by_region(unit, rooms.lifecycle, states), visible)
        reported = filter_states(states, unit, visible)
        used, named = unit.units_running(), rooms.settings.gateways
        regions = region_views(fleet_or_none(unit), used, reported, drains, gateways=named)
        plan = plan_in_force(unit)
        replan = newest_replan(unit, plan)
        replan = replan and redact_plan(replan, visible)
        if plan is not None and not is_plan_shown(plan.summary, unit, visible):
            plan = None
        plan = plan and plan.model_copy(update={"summary": redact_plan(plan.summary, visible)})
        changes, events = unit.change_page(limit=CHANGES), unit.event_page(limit=EVENTS)
        newest = {each.record.name: change for each in facts if (change := _find_shown(each.changes)) is not None}
        stages = unit.change_stages([change.id for change in (*changes.items, *newest.values())])

    def show(change: Change) -> ChangeView:
        return add_stages(change_view(change, rooms.lifecycle), stages.get(change.id, ()))

    return Overview(
        models=tuple(
            ModelOverview(
                model=view,
                generations=generations.get(name, ()),
                frozen=held.get(name),
                explanation=explanations.get(name),
                sources=tuple(source for source in sources if source.model == name),
                change=add_shadow(show(newest[name]), shadows.get(name)) if name in newest else None,
                derivatives=tuple(map(view_derivation, derivations.get(name, ()))),
            )
            for name, view in views.items()
        ),
        next=page.next,
        model_count=readiness.models,
        ready_count=readiness.ready,
        not_ready=readiness.not_ready,
        regions=regions,
        changes=tuple(map(show, changes.items)),
        events=tuple(EventView.model_validate(event, from_attributes=True) for event in events.items),
        plan=plan,
        replan=replan,
        temporal_ui_url=rooms.settings.temporal_ui_url,
    )


def _find_shown(changes: Sequence[Change]) -> Change | None:
    """Return the change that runs, else the newest one. `changes`: newest first."""
    return next((change for change in changes if change.state is ChangeState.RUNNING), next(iter(changes), None))


def _view(facts: ModelFacts, states: States, rates: tuple[PartThroughput, ...]) -> ModelView:
    answers = answers_of(facts.record.name, facts.record.serving_generation, states)
    return model_view(facts, states).model_copy(update={"answers": answers, "throughput": rates})


def _frozen(unit: Repository, facts: Sequence[ModelFacts], at: datetime) -> Mapping[str, Frozen]:
    """Return the freezes that would block a publish of each model; each freeze is evaluated once."""
    calendars = calendars_of(unit)
    if not calendars:
        return {}
    placed = unit.placed_regions([each.record.name for each in facts])
    found = {}
    for each in facts:
        name, manifest = each.record.name, each.record.manifest
        regions = {item.region for item in manifest.spec.demand} | placed.get(name, frozenset())
        regions |= {deployment.key.region for deployment in each.deployments if deployment.replicas}
        bound = frozen(calendars, ChangeScope(name, manifest.metadata.owner, frozenset(regions), "publish"), at)
        if bound is not None:
            found[name] = bound
    return found
