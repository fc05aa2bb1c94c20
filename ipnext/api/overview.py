"""One answer with everything the page shows."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from fastapi import APIRouter

from ipnext.api.answers import answers_of
from ipnext.api.drains import drains_by_region
from ipnext.api.explanation import explanation_of
from ipnext.api.facts import ModelFacts, all_facts
from ipnext.api.freezes import calendars_of
from ipnext.api.lifecycle import change_view
from ipnext.api.plans import newest_replan, plan_in_force
from ipnext.api.platform import Rooms
from ipnext.api.regions import fleet_or_none, region_views
from ipnext.api.status import States, model_view, observed_conditions
from ipnext.freezes.evaluation import Asked, frozen
from ipnext.model.freeze import Frozen
from ipnext.model.measured import throughputs, wants_profiles
from ipnext.model.profile import PartThroughput
from ipnext.model.registry import Generation
from ipnext.model.resource import EventView, Explanation, ModelOverview, ModelView, Overview
from ipnext.model.status import ConditionType
from ipnext.store.repository import Repository
from ipnext.store.touched import touched_by

router = APIRouter(prefix="/v1/overview", tags=["overview"])

GENERATIONS = 8
CHANGES = 25
EVENTS = 40
EXPLAINED = 20
"""Models that are explained on the page: the first ones, by name, that are not ready."""


@router.get("", summary="Read everything the page shows")
def overview(rooms: Rooms) -> Overview:
    """Models with their newest generations, regions, recent changes and events, and the plan in force."""
    at = datetime.now(UTC)
    states = rooms.observer.states()
    with rooms.store.read() as unit:
        facts = all_facts(unit)
        told = _explained(unit, facts, states)
        held = _frozen(unit, [each.record.name for each in facts], at)
        generations = {each.record.name: _newest(unit, each.record.name) for each in facts}
        rates = {each.record.name: _throughput(unit, each) for each in facts}
        fleet, deployments, plan = fleet_or_none(unit), unit.deployments(), plan_in_force(unit)
        events, replan = unit.events(limit=EVENTS), newest_replan(unit)
        drains = drains_by_region(unit, rooms.lifecycle)
    changes = sorted((c for each in facts for c in each.changes), key=lambda c: c.created_at, reverse=True)
    return Overview(
        at=at,
        models=tuple(
            ModelOverview(
                model=_view(each, states, rates[each.record.name]),
                generations=generations[each.record.name],
                frozen=held.get(each.record.name),
                explanation=told.get(each.record.name),
            )
            for each in facts
        ),
        regions=region_views(fleet, deployments, states, drains),
        changes=tuple(change_view(change, rooms.lifecycle) for change in changes[:CHANGES]),
        events=tuple(EventView(**dict(event)) for event in events),
        plan=plan,
        replan=replan,
        temporal_ui_url=rooms.settings.temporal_ui_url,
    )


def _view(facts: ModelFacts, states: States, rates: tuple[PartThroughput, ...]) -> ModelView:
    answers = answers_of(facts.record.name, facts.record.serving_generation, states)
    return model_view(facts, states).model_copy(update={"answers": answers, "throughput": rates})


def _throughput(unit: Repository, facts: ModelFacts) -> tuple[PartThroughput, ...]:
    """What plans take a replica to do; profiles are read for models that ask for them alone."""
    record = facts.record
    known = unit.profiles_of(record.name, record.serving_generation) if wants_profiles(record.manifest) else {}
    return throughputs(record.manifest, known)


def _frozen(unit: Repository, models: Iterable[str], at: datetime) -> Mapping[str, Frozen]:
    """What would hold a publish of each model back; each freeze is worked out once."""
    calendars = calendars_of(unit)
    found = {}
    for model in models if calendars else ():
        bound = frozen(calendars, Asked(model, *touched_by(unit, model), "publish"), at)
        if bound is not None:
            found[model] = bound
    return found


def _explained(unit: Repository, facts: Iterable[ModelFacts], states: States) -> Mapping[str, Explanation]:
    """What `ipnext explain` says of models that are not ready."""
    wanting = [each for each in facts if each.changes and not _is_ready(each, states)]
    return {each.record.name: explanation_of(unit, each, states) for each in wanting[:EXPLAINED]}


def _is_ready(facts: ModelFacts, states: States) -> bool:
    ready = (c for c in observed_conditions(facts, states) if c.type is ConditionType.READY)
    return any(condition.status == "True" for condition in ready)


def _newest(unit: Repository, model: str) -> tuple[Generation, ...]:
    """Without their layouts: the page shows the one that serves."""
    return tuple(g.model_copy(update={"layout": None}) for g in unit.generations(model)[:GENERATIONS])
