"""The way from what runs to the plan, by the real planner, on the supply that the real code says is left."""

from types import SimpleNamespace
from typing import Any, cast

from activities.planning import problem as problems
from activities.state import drained_fleet as drained
from activities.state import wave_state as waves
from activities.transition import admission as admitting
from activities.transition import draft
from activities.transition import rollback_target as carried
from ipnext.errors import NotFound, Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.manifest.derived.layout import laid_out
from ipnext.model.planning.plan import RegionDemand
from ipnext.model.planning.transition import FleetState, Transition, TransitionState, Wave
from ipnext.store.operations.change_end import BRINGS_NOTHING_NEW
from tests.workflows.simulation.journal import Change, Moving


def plan_transition(world: Any, change: Change, generation: int) -> Moving:
    """Plan the transition of a change, once, and store it.

    Unavailable while only another model's transition is in the way.
    """
    known = world.journal.find_transition(change.id)
    world.journal.check_fence(change.id, known.fence if known else 0)
    world.journal.check_only_mover(change)
    if known is not None:
        return known
    record = world.journal.records[change.model]
    revision, manifest, placement = world.manifests.basis(change)
    if placement is None:
        msg = "no plan is in force that places it"
        raise NotFound(msg)
    origin = waves.running_state(
        change.model,
        record.deployments.values(),
        record.tables.values(),
        demanding={item.region for item in manifest.spec.demand},
        lost=world.out.lost,
        serving=record.serving,
    )
    target = record.generations[generation]
    to = waves.planned_state(change.model, generation, cast("Any", placement), parts=target.parts)
    demand = tuple(RegionDemand(region=item.region, qps=item.amount) for item in manifest.spec.demand)
    if change.kind in BRINGS_NOTHING_NEW and record.serving != generation:
        refused = f"generation {record.serving} serves by now"
        found = Transition.model_validate({"from": FleetState(), "to": FleetState(), "refused": refused})
    else:
        world.invariants.manifests.check_basis(change, revision)
        served = laid_out(manifest, cast("Any", target))
        found = _plan_waves(world, change, served, (origin, to)).model_copy(update={"demand": demand})
        if found.refused and (lacking := draft.explain_lacking(generation, target.parts, placement, manifest)):
            world.invariants.manifests.check_lacking(change, target, manifest, lacking)
            found = found.model_copy(update={"refused": lacking})
    state = TransitionState.REFUSED if found.refused else TransitionState.PLANNED
    moving = Moving(change.id, change.model, generation, found, state, before=dict(record.deployments))
    record.transitions.append(moving)
    world.invariants.changes.check_mover(change.model)
    if world.tracing:
        world.tell("waves", found.refused or " | ".join(_describe(wave) for wave in found.waves))
    rollback = change.kind in admitting.AT_ONCE
    ends = {row.region for row in (*origin.replicas, *to.replicas) if row.count}
    passing = frozenset(row.region for wave in found.waves for row in wave.scale_up if row.count) - ends
    world.invariants.capacity.begin(change.model, found.dips, rollback=rollback, manifest=manifest, passing=passing)
    if world.out.lost.intersection(row.region for row in to.replicas):
        world.invariants.excuses.strained.add(change.model)
    return moving


def way_back(world: Any, planned: Moving) -> waves.Back:
    """By the real function."""
    journal, kind = world.journal, world.journal.by_id[planned.id].kind
    stage = StageInput(model=planned.model, change_id=planned.id, kind=kind, generation=planned.generation)
    store = SimpleNamespace(
        fleet=lambda: SimpleNamespace(spec=world.fleet),
        model=journal.model,
        as_measured=journal.as_measured,
        generation=journal.generation,
        deployments=journal.deployments,
        placement=journal.placement,
    )
    units = {(key.part, key.hardware): d.units for key, d in planned.before.items()}
    before = cast("Any", SimpleNamespace(units=units))
    in_use = problems.units_in_use(journal, but=planned.model)
    return admitting.way_back(cast("Any", store), stage, planned.transition, in_use, before)


def _plan_waves(world: Any, change: Change, manifest: Any, ends: tuple[FleetState, FleetState]) -> Transition:
    """As activities/transition/admission.py `planned_waves`."""
    journal, record, out = world.journal, world.journal.records[change.model], world.out
    origin, to = ends
    if (outdated := admitting.wait_for_repair(ChangeKind(change.kind), to, out.lost)) is not None:
        return Transition.model_validate({"from": origin, "to": to, "refused": outdated})
    numbers = {row.generation for end in (origin, to) for row in (*end.replicas, *end.traffic)}
    rollout = manifest.spec.rollout
    policy = admitting.step_policy(rollout, ChangeKind(change.kind), record.refresh)
    policy = policy.model_copy(update={"calls": {n: record.generations[n].parts for n in sorted(numbers)}})
    fleet = drained.without_drained(world.fleet, out)
    wished = drained.relax_model(problems.model_problem(manifest), world.fleet, out)
    wished = problems.with_running_options(wished, record.deployments.values())
    if change.kind is ChangeKind.ROLLBACK:
        to = admitting._remaining_target(wished, to, world.fleet, out)
    if change.kind in admitting.AT_ONCE:
        wished = carried.within_reach(wished, to)
    now = problems.with_supply_left(fleet, problems.units_in_use(journal, but=change.model))
    found, admission = _ask_planner(world, (change.id, "now"), (wished, now, (origin, to), policy))
    if found.refused:
        later = problems.with_supply_left(fleet, journal.units_entitled(but=change.model))
        if _ask_planner(world, (change.id, "later"), (wished, later, (origin, to), policy))[1].feasible:
            msg = f"waiting for supply that another model is about to free: {found.refused}"
            raise Unavailable(msg)
        if rollout.when_short == "wait" and admission.surge and change.kind not in admitting.AT_ONCE:
            world.faults.count("waits for supply")
            msg = f"waiting for supply: {found.refused}"
            raise Unavailable(msg)
    if found.dips:
        world.faults.count("dips")
    if not found.waves and not found.refused:
        return found.model_copy(update={"waves": (Wave(gate="final"),)})
    return found


def _ask_planner(world: Any, key: tuple[str, str], inputs: tuple[Any, ...]) -> Any:
    """The planner's answer; a change that waits for supply asks again and again, mostly the same."""
    if key not in world.asked or world.asked[key][0] != inputs:
        world.asked[key] = inputs, admitting._try_admit(*inputs)
    return world.asked[key][1]


def _describe(wave: Wave) -> str:
    """A wave in one line."""
    counts = [
        [f"{r.part}@{r.region}/{r.hardware} g{r.generation}={r.count}" for r in rows]
        for rows in (wave.scale_up, wave.scale_down)
    ]
    routes = [
        f"{c.origin}: {', '.join(f'{s.to} g{s.generation} {s.fraction:g}' for s in c.shares)}" for c in wave.route
    ]
    return f"up {counts[0]} route {routes} down {counts[1]}"
