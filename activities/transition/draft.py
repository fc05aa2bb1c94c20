"""A transition before it is stored: its waves and the inputs that they were planned by.

For `activities.transition.activities`. Planning takes longer than a unit of work may block others. So the draft is made
in a read-only unit, and the unit that writes it first checks that all of its inputs still hold.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from activities.planning.problem import model_as_served, units_in_use, units_of
from activities.state.drained_fleet import DrainedFleet, without_drained
from activities.state.serving_basis import go_by_what_serves
from activities.state.wave_state import Back, peak, planned_state, running_state
from activities.transition.admission import not_swapped, planned_waves, price_of, refuse_transition, way_back
from activities.transition.dropped_users import explain_drop
from ipnext.errors import NotFound
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.checks import LIVE_LATENCY
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.rollout import RolloutSpec
from ipnext.model.planning.plan import RegionDemand
from ipnext.model.planning.transition import FleetState, Transition, TransitionState
from ipnext.store.operations.change_end import BRINGS_NOTHING_NEW
from ipnext.store.planning.placements import Units
from ipnext.store.records import ModelPlacement, ModelRecord, TransitionRecord
from ipnext.store.repository import Repository

TOLERANCE = 1e-9
"""Units: the database adds fractions in an order of its choice."""


@dataclass(frozen=True)
class Draft:
    """A transition of one change, stored (`known`) or not yet."""

    record: TransitionRecord
    known: bool
    price: str
    back: Back
    rollout: RolloutSpec
    times_replicas: bool
    """Whether the manifest has live replicas timed."""
    basis: tuple[Any, ...]
    """The model's rows, and the fleet's, when the transition was planned."""
    in_use: Mapping[tuple[str, str], float]
    """Units that the other models used at that time, by region and hardware."""

    @classmethod
    def read(cls, repository: Repository, stage: StageInput) -> "Draft":
        """Return the stored transition of the change, or a planned one.

        Raises:
            NotFound: no placement exists.
            Unavailable: another change moves the model, only another model's transition holds the supply that the waves
                need, or the owner prefers to wait for supply.
        """
        go_by_what_serves(repository, stage.model, stage.change_id)
        known = repository.find_transition(stage.change_id)
        repository.check_fence(stage.change_id, known.fence if known else 0)
        repository.check_only_mover(stage.model, stage.change_id)
        in_use = units_in_use(repository, but=stage.model)
        record = known or _plan_transition(repository, stage, in_use)
        spec = repository.model(stage.model).in_force.spec
        return cls(
            record=record,
            known=known is not None,
            price=price_of(record.transition, not_swapped(repository, stage, record.transition)),
            back=way_back(repository, stage, record.transition, in_use),
            rollout=spec.rollout,
            times_replicas=spec.validation.live_latency is not None and LIVE_LATENCY not in spec.validation.skip,
            basis=_basis(repository, stage),
            in_use=in_use,
        )

    def holds(self, repository: Repository, stage: StageInput) -> bool:
        """Check whether no input of the plan was written since.

        Others may use less supply by now, or more if the rest still covers all that the transition and its revert may
        ever need. Must run in a unit of the model that has locked the plan in force, so that no other model is placed
        or admitted meanwhile. The usage of others can only shrink while it is read: a wave stays within its transition,
        which is counted at its peak.
        """
        go_by_what_serves(repository, stage.model, stage.change_id)
        repository.check_fence(stage.change_id)
        repository.check_only_mover(stage.model, stage.change_id)
        if repository.find_transition(stage.change_id) is not None or _basis(repository, stage) != self.basis:
            return False
        now, then = units_in_use(repository, but=stage.model), self.in_use
        cells = {(region, hardware) for _, region, hardware in _slots(self.record.transition, stage.model)}
        if all(now.get(cell, 0.0) <= then.get(cell, 0.0) + TOLERANCE for cell in cells):
            return True
        return self.record.transition.refused is None and _is_roomy(repository, stage, self.record.transition, now)


def _plan_transition(repository: Repository, stage: StageInput, in_use: Units) -> TransitionRecord:
    placed = repository.placement(stage.model)
    if placed is None:
        msg = f"no plan is in force that places {stage.model!r}; publish or apply it so that one is made"
        raise NotFound(msg)
    deployments, tables = repository.deployments(stage.model), repository.routes(stage.model)
    model = repository.model(stage.model)
    if stage.kind in BRINGS_NOTHING_NEW and model.serving_generation != stage.generation:
        return _refuse_outdated(stage, model)
    demand = model.in_force.spec.demand
    demanding = {item.region for item in demand}
    lost = DrainedFleet.of(repository.drains()).lost
    origin = running_state(
        stage.model, deployments, tables, demanding=demanding, lost=lost, serving=model.serving_generation
    )
    parts = repository.generation(stage.model, stage.generation).parts
    to = planned_state(stage.model, stage.generation, placed.state, parts=parts)
    if stage.kind is ChangeKind.MOVE and (why := explain_drop(repository, model.in_force, origin, to)) is not None:
        return _record(stage, model, refuse_transition(origin, to, why))
    planned_for = tuple(RegionDemand(region=item.region, qps=item.amount) for item in demand)
    transition = planned_waves(repository, stage, origin, to, in_use).model_copy(update={"demand": planned_for})
    if transition.refused and (lacking := explain_lacking(stage.generation, parts, placed, model.in_force)):
        transition = transition.model_copy(update={"refused": lacking})
    return _record(stage, model, transition)


def explain_lacking(
    generation: int, parts: Collection[str], placed: ModelPlacement, manifest: ModelManifest
) -> str | None:
    """Explain why a placement can't carry a generation: it was made without one of its parts. None if it has all.

    It was made for another generation, or the generation never served and the manifest no longer has the part.
    """
    lacking = sorted(set(parts) - placed.parts)
    if not lacking:
        return None
    named, hosted = ", ".join(lacking), ", ".join(part.name for part in manifest.spec.hosted_parts)
    return (
        f"generation {generation} has part{'s' if len(lacking) > 1 else ''} {named}, which plan {placed.plan_id!r} "
        f"does not place: it was made for {', '.join(sorted(placed.parts))}, and the manifest in force has {hosted}. "
        f"Apply a manifest with {named}, or publish snapshots of the manifest's parts"
    )


def _refuse_outdated(stage: StageInput, model: ModelRecord) -> TransitionRecord:
    """Return the refused transition of a change to the generation that served when it began.

    Another one serves by now.
    """
    serves = f"generation {model.serving_generation} serves" if model.serving_generation else "nothing serves"
    refused = f"{serves} by now, not generation {stage.generation}, which served when the {stage.kind} began"
    return _record(stage, model, refuse_transition(FleetState(), FleetState(), refused))


def _record(stage: StageInput, model: ModelRecord, transition: Transition) -> TransitionRecord:
    return TransitionRecord(
        id=stage.change_id,
        model=stage.model,
        change_id=stage.change_id,
        generation=stage.generation,
        transition=transition,
        state=TransitionState.REFUSED if transition.refused else TransitionState.PLANNED,
        created_at=datetime.now(UTC),
        revision=model.generation,
    )


def _is_roomy(repository: Repository, stage: StageInput, transition: Transition, in_use: Units) -> bool:
    """Check whether the free supply covers both ends of a transition at once, and the peak of its waves.

    That is more than any moment needs.
    """
    model = stage.model
    served = model_as_served(repository, model, stage.generation)
    units = units_of(served, repository.deployments(model), repository.placement(model))
    origin, to = Counter[tuple[str, str, str]](), Counter(peak(transition, model))
    for row in transition.origin.replicas:
        origin[row.part, row.region, row.hardware] += row.count
    for row in transition.to.replicas:
        slot = (row.part, row.region, row.hardware)
        to[slot] = max(to[slot], row.count)
    needed: dict[tuple[str, str], float] = defaultdict(float)
    for (part, region, hardware), count in (origin + to).items():
        needed[region, hardware] += count * units.get((part, hardware), 0.0)
    fleet = without_drained(repository.fleet().spec, DrainedFleet.of(repository.drains()))
    supply = {(item.region, item.hardware): item.units for item in fleet.supply}
    return all(in_use.get(c, 0.0) + most <= supply.get(c, 0.0) + TOLERANCE for c, most in needed.items())


def _basis(repository: Repository, stage: StageInput) -> tuple[Any, ...]:
    """Return the fleet, the drains, and the records of the model.

    These are its manifests, serving generation, placement, replica sets and route tables.
    """
    model, record = stage.model, repository.model(stage.model)
    return (
        repository.fleet().version,
        DrainedFleet.of(repository.drains()),
        record.version,
        record.accepted,
        record.serving_generation,
        repository.placement(model),
        repository.deployments(model),
        repository.routes(model),
    )


def _slots(transition: Transition, model: str) -> frozenset[tuple[str, str, str]]:
    """Return every replica set that the transition needs at some moment."""
    ends = {(row.part, row.region, row.hardware) for end in (transition.origin, transition.to) for row in end.replicas}
    return frozenset(ends | peak(transition, model).keys())
