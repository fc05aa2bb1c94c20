"""Admission of a change: whether it may begin to move, by which waves and at what price, on the supply that is free.

Functions of one unit of work, called by `activities.transition.activities`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from activities.planning.problem import (
    fleet_problem,
    model_as_served,
    model_problem,
    units_of,
    with_running_options,
    with_supply_left,
)
from activities.state.drained_fleet import DrainedFleet, relax_model, without_drained
from activities.state.facts import snapshots_of
from activities.state.routes.failover_shares import Nearness
from activities.state.wave_state import Back, fits_at_once
from activities.transition.hot_swap import find_restarts
from activities.transition.refresh_mode import refresh_of
from activities.transition.rollback_target import on_what_is_left, within_reach
from ipnext.errors import InvalidInput, Unavailable
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.manifest.rollout import RolloutSpec
from ipnext.model.planning.admission import Admission
from ipnext.model.planning.plan import ModelProblem
from ipnext.model.planning.transition import FleetState, Refresh, Swap, Transition, Wave
from ipnext.model.throughput import in_unit
from ipnext.store.planning.placements import Units
from ipnext.store.records import StateBefore
from ipnext.store.repository import Repository
from planner.transition.planner import StepPolicy, admit

AT_ONCE = frozenset({ChangeKind.ROLLBACK, ChangeKind.REPAIR})
"""Kinds of changes that take one step: the generation has served before, and users wait for it."""

REPAIR_DIP = 0.5
"""Largest fraction of a part's throughput that a repair may dip by. The planner takes the smallest dip that is
feasible."""


def planned_waves(
    repository: Repository, stage: StageInput, origin: FleetState, to: FleetState, in_use: Units
) -> Transition:
    """Plan waves on the supply that is free at this moment; at least one wave, so that settings are applied.

    `in_use` is the usage of the other models (`problem.units_in_use`).

    The transition is refused if no safe sequence exists. Raises Unavailable if only another model's transition is in
    the way, or if the owner prefers waiting for supply to a refusal: a later retry can succeed.
    """
    model, manifest = stage.model, model_as_served(repository, stage.model, stage.generation)
    rollout = manifest.spec.rollout
    calls = {number: repository.generation(model, number).parts for number in _generations(origin, to)}
    policy = step_policy(rollout, stage.kind, refresh_of(repository, manifest, (origin, to)))
    policy = policy.model_copy(update={"calls": calls})
    whole, drained = repository.fleet().spec, DrainedFleet.of(repository.drains())
    if (outdated := wait_for_repair(stage.kind, to, drained.lost)) is not None:
        return refuse_transition(origin, to, outdated)
    fleet = without_drained(whole, drained)
    wished = with_running_options(relax_model(model_problem(manifest), whole, drained), repository.deployments(model))
    if stage.kind is ChangeKind.ROLLBACK:
        to = _remaining_target(wished, to, whole, drained)
    if stage.kind in AT_ONCE:
        wished = within_reach(wished, to)
    now = with_supply_left(fleet, in_use)
    transition, admission = _try_admit(wished, now, (origin, to), policy)
    if transition.refused:
        transition = transition.model_copy(update={"refused": in_unit(transition.refused, manifest.spec.unit)})
        later = with_supply_left(fleet, repository.units_entitled(but=model))
        if _try_admit(wished, later, (origin, to), policy)[1].feasible:
            msg = f"waiting for supply that another model is about to free: {transition.refused}"
            raise Unavailable(msg)
        if rollout.when_short == "wait" and admission.surge and stage.kind not in AT_ONCE:
            msg = f"waiting for supply: {transition.refused}"
            raise Unavailable(msg)
    if not transition.waves and not transition.refused:
        return transition.model_copy(update={"waves": (Wave(gate="final"),)})
    return transition


def refuse_transition(origin: FleetState, to: FleetState, why: str) -> Transition:
    """Return a transition that is refused, without waves."""
    return Transition.model_validate({"from": origin, "to": to, "refused": why})


def wait_for_repair(kind: ChangeKind, to: FleetState, lost: Collection[str]) -> str | None:
    """Raise Unavailable if the plan in force places the model in a region that was lost after the plan was made.

    The replan that the loss triggered brings another plan. A rollback targets the remaining regions, and waits only if
    there is none. A move and a repair do not wait, because the plan of the repair replaces theirs: the reason of their
    refusal is returned.
    """
    regions = {row.region for row in to.replicas}
    placed = regions.intersection(lost)
    if not placed or (kind is ChangeKind.ROLLBACK and regions.difference(lost)):
        return None
    why = f"{min(placed)!r} was lost, and the plan in force places the model there"
    if kind in {ChangeKind.MOVE, ChangeKind.REPAIR}:
        return f"{why}; the next replan makes a plan without it"
    msg = f"waiting for a plan without {min(placed)!r}: {why}"
    raise Unavailable(msg)


def _remaining_target(model: ModelProblem, to: FleetState, fleet: FleetSpec, drained: DrainedFleet) -> FleetState:
    """Return the target state of a rollback while regions are lost."""
    rows = zip(fleet.regions, fleet.rtt_ms, strict=True)
    rtt_ms = {(origin, region): ms for origin, row in rows for region, ms in zip(fleet.regions, row, strict=True)}
    return on_what_is_left(model, to, drained.lost, Nearness(rtt_ms, model.latency_tolerance_ms))


def step_policy(rollout: RolloutSpec, kind: ChangeKind, refresh: Refresh) -> StepPolicy:
    """Return the planner's step policy for a rollout.

    A rollback and a repair take one step without a bake time: their generation has served before. If the supply has no
    room for a safe sequence, a repair dips, whatever the manifest says: without it, users stay on a generation that
    does not serve.
    """
    short = {"when_short": rollout.when_short, "max_dip": rollout.max_dip, "refresh": refresh}
    if kind is ChangeKind.REPAIR:
        short |= {"when_short": "dip", "max_dip": max(rollout.max_dip, REPAIR_DIP)}
    if kind in AT_ONCE:
        return StepPolicy.model_validate({"canary": 1.0, "max_step": 1.0, "hold_seconds": 0.0, **short})
    pace = {"canary": rollout.canary, "max_step": rollout.max_step, "hold_seconds": rollout.hold_seconds}
    return StepPolicy.model_validate({**pace, **short})


def price_of(transition: Transition, anew: Mapping[str, str]) -> str:
    """Describe the surge, the dips and the swaps of the waves in words; empty if there are none.

    `anew`: part -> reason why its engines cannot be hot swapped if the waves swap them (`hot_swap.find_restarts`).
    """
    surge = [f"{item.units:.9g} units of {item.region}/{item.hardware}" for item in transition.surge]
    dips = [f"{dip.part} in {dip.region} by {dip.fraction:.0%}" for dip in transition.dips]
    told = [f"takes {', '.join(surge)} for a while"] if surge else []
    told += [f"dips: {', '.join(dips)}"] if dips else []
    told += list(_price_of_swaps(transition.swaps, anew))
    return "; ".join(told) if transition.refused is None else ""


def _price_of_swaps(swaps: Sequence[Swap], anew: Mapping[str, str]) -> Iterator[str]:
    """Yield texts such as: swaps 2 replicas; dips llm in us-east by 50% for seconds."""
    going = [swap for swap in swaps if swap.part not in anew]
    if going:
        yield f"swaps {_replicas(going)}"
        dips = _dips(going)
        yield from [f"dips {dips} for seconds"] if dips else []
    for part, why in anew.items():
        starting = [swap for swap in swaps if swap.part == part]
        yield f"can't swap {_replicas(starting)} of {part}, since {why}: ends them and starts others in their place"
        dips = _dips(starting)
        yield from [f"dips {dips} until these are ready (rollout.refresh: replace starts them first)"] if dips else []


def _replicas(swaps: Iterable[Swap]) -> str:
    count = sum(swap.replicas for swap in swaps)
    return f"{count} replica{'s' if count > 1 else ''}"


def _dips(swaps: Iterable[Swap]) -> str:
    return ", ".join(f"{swap.part} in {swap.region} by {swap.fraction:.0%}" for swap in swaps if swap.fraction > 0)


def not_swapped(repository: Repository, stage: StageInput, transition: Transition) -> Mapping[str, str]:
    """Map each part that the waves swap to the reason why its engines are restarted instead."""
    if not transition.swaps:
        return {}
    model, numbers = stage.model, _generations(transition.origin, transition.to)
    spec = model_as_served(repository, model, stage.generation).spec
    involved = repository.generations_at_work(model, numbers)[::-1]
    named = repository.snapshots_named(snapshots_of(involved))
    manifests = {(s.part, s.number): s.manifest for s in named}
    return find_restarts(spec, involved, manifests, transition)


def way_back(
    repository: Repository,
    stage: StageInput,
    transition: Transition,
    in_use: Units,
    before: StateBefore | None = None,
) -> Back:
    """Decide whether a revert may go in one step.

    The former capacity is added beside the capacity that exists by then. `before` is what the revert restores, for a
    transition that has begun: it may have ended all replicas of a part that the manifest lacks.
    """
    if transition.refused is not None:
        return "at_once"
    manifest = model_as_served(repository, stage.model, stage.generation)
    units = units_of(manifest, repository.deployments(stage.model), repository.placement(stage.model))
    units = {**before.units, **units} if before else units
    left = with_supply_left(repository.fleet().spec, in_use)
    supply = {(item.region, item.hardware): item.units for item in left.supply}
    return "at_once" if fits_at_once(transition, stage.model, units, supply) else "by_waves"


def _generations(*states: FleetState) -> frozenset[int]:
    """Return all generations that the states name."""
    replicas = {row.generation for state in states for row in state.replicas}
    return frozenset(replicas | {share.generation for state in states for share in state.traffic})


def _try_admit(
    model: ModelProblem, fleet: FleetSpec, ends: tuple[FleetState, FleetState], policy: StepPolicy
) -> tuple[Transition, Admission]:
    origin, to = ends
    try:
        planned, admission = admit(fleet_problem(fleet, [model]), origin, to, {model.model: policy})
    except InvalidInput as error:
        return refuse_transition(origin, to, error.message), Admission(
            feasible=False, mode="refused", reason=error.message
        )
    return planned.model_copy(update={"refresh": policy.refresh}), admission
