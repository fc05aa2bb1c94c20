"""Fields of the fleet's records that are hidden from principals that may see the models of only some owners.

Such records name models of all owners in lists and in texts; their counts and states stay.
"""

from collections.abc import Iterable, Mapping

from ipnext import names
from ipnext.api.services.region_states import States
from ipnext.model.api.resources import MovesView, PlanSummary, ReplanView
from ipnext.model.deployment.replica import Replica
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.regions.drain import DrainView
from ipnext.store.repository import Repository

Visible = frozenset[str] | None
"""Owners; None: all."""

HIDDEN = "not shown: it may name models of other owners"


def redact_plan(plan: PlanSummary, visible: Visible) -> PlanSummary:
    """Hide the plan before it, whose id may name a model, and the message if the plan is the fleet's."""
    if visible is None:
        return plan
    message = HIDDEN if plan.message and plan.scope is None else plan.message
    return plan.model_copy(update={"message": message, "based_on": None})


def is_plan_shown(plan: PlanSummary, unit: Repository, visible: Visible) -> bool:
    """Return whether a plan may be shown at all: that of one model only to principals that may read the model."""
    return visible is None or plan.scope is None or bool(visible_models(unit, [plan.scope], visible))


def redact_replan(replan: ReplanView, visible: Visible) -> ReplanView:
    """Return a replan with the counts of its models, without their names."""
    if visible is None:
        return replan
    progress = replan.progress
    if progress is not None:
        progress = progress.model_copy(update={"moving_models": (), "held_models": (), "troubles": ()})
    message = HIDDEN if replan.message else ""
    return replan.model_copy(update={"models": (), "progress": progress, "message": message})


def is_replan_shown(replan: ReplanView, visible: Visible) -> bool:
    """Return whether a replan may be shown at all: the id of one for a model's shortage names the model."""
    return visible is None or not replan.id.startswith(names.SHORTAGE_PREFIX)


def redact_moves(moves: MovesView, visible: Visible) -> MovesView:
    """Return the state of the replans' moves, without the names of models."""
    if visible is None:
        return moves
    pause = moves.pause and moves.pause.model_copy(update={"reason": HIDDEN})
    replan = moves.replan if moves.replan is not None and is_replan_shown(moves.replan, visible) else None
    return moves.model_copy(update={"pause": pause, "replan": replan and redact_replan(replan, visible)})


def redact_drain(drain: DrainView, visible: Visible) -> DrainView:
    """Return a drain without the texts that name unserved models."""
    if visible is None or not drain.message:
        return drain
    return drain.model_copy(update={"message": HIDDEN, "summary": HIDDEN})


def redact_fleet(spec: FleetSpec, visible: Visible) -> FleetSpec:
    """Return the fleet with the budgets of the visible owners."""
    if visible is None:
        return spec
    return spec.model_copy(update={"owners": tuple(o for o in spec.owners if o.owner in visible)})


def filter_states(states: States, unit: Repository, visible: Visible) -> States:
    """Return the regions' reports about visible models, so that counts made of them disclose no others."""
    if visible is None:
        return states
    reports = [report for report in states.values() if report is not None]
    named = {replica.key.model for report in reports for replica in report.replicas}
    named |= {model for report in reports for model in (*report.routes, *(count.model for count in report.traffic))}
    seen = visible_models(unit, named, visible)
    shown = {region: None if report is None else report.only(seen) for region, report in states.items()}
    return States(shown, revision=states.revision, at=states.at)


def redact_drains(drains: Mapping[str, DrainView], visible: Visible) -> Mapping[str, DrainView]:
    """Return the drains by region, without the texts that name unserved models."""
    return {region: redact_drain(drain, visible) for region, drain in drains.items()}


def filter_replicas(
    replicas: Iterable[Replica], unit: Repository, visible: Visible, *, of: str | None = None
) -> tuple[Replica, ...]:
    """Return the replicas of visible models. `of`: all are of this model, which is looked up even if it has none."""
    found = tuple(replicas)
    if visible is None:
        return found
    seen = visible_models(unit, {replica.key.model for replica in found} if of is None else {of}, visible)
    return tuple(replica for replica in found if replica.key.model in seen)


def visible_models(unit: Repository, names: Iterable[str], visible: frozenset[str]) -> frozenset[str]:
    """Return those of these models that belong to visible owners."""
    return frozenset(name for name, owner in unit.owners_of(set(names)).items() if owner in visible)
