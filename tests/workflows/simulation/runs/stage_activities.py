"""The activities of a lifecycle run, but for those of its transition. Each may be done any number of times."""

# ruff: noqa: ARG002 - all are called alike, though few need to know their attempt

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from activities.deployment import activities as deployment
from activities.metadata.activities import needs_placement
from activities.planning import adoption
from activities.planning.problem import fleet_problem, model_as_served, model_problem
from activities.state.wave_state import state_of
from ipnext.errors import FenceLost, IPnextError, Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import CurrentState, ReplicaCount, TrafficShare
from ipnext.store.operations.change_end import BRINGS_NOTHING_NEW, ROLLS_OUT
from tests.workflows.simulation.journal import UNDER_WAY, Change, Moving, Placement, Record, placed_units
from tests.workflows.simulation.placement import draw_placement
from tests.workflows.simulation.transitions import plan as transition_plan
from tests.workflows.simulation.transitions.walk import Failed

from . import reconciliation
from .activity_attempts import Attempt

Steps = Generator[Any, Any, Any]
Prepared = dict[str, Any]
"""Stage -> its answer, of those that one attempt has gone through."""


class Begun(NamedTuple):
    """What a run works on."""

    generation: int | None = None
    final: ChangeState | None = None


class Stages:
    """The activities of one run."""

    def __init__(self, run: Any) -> None:
        self.run, self.world, self.change = run, run.world, run.change
        self.record: Record = run.world.journal.records[run.change.model]

    def begin(self, attempt: Attempt) -> Steps:
        """What the change works on; none where it has ended, or a newer plan has other places."""
        change, record = self.change, self.record
        yield "begins"
        if change.state.final:
            return Begun(change.generation, change.state)
        if change.kind is ChangeKind.MOVE and (record.placement is None or record.placement.plan_id != change.plan_id):
            self.world.journal.end(change, ChangeState.SUPERSEDED, "a newer plan places it otherwise")
            if self.world.ends:
                reconciliation.record_repair(self.world, change.model)
            return Begun(record.serving, ChangeState.SUPERSEDED)
        generation = change.generation
        if change.kind is ChangeKind.APPLY:
            generation = record.serving or max(record.generations, default=None)
        elif change.kind in {ChangeKind.MOVE, ChangeKind.RETIRE, ChangeKind.REPAIR}:
            generation = record.serving
        elif change.kind is ChangeKind.ROLLBACK and record.generations[generation].serving_at is None:
            raise Failed(Reason.TRANSITION_REFUSED, "has never served")
        change.state = ChangeState.RUNNING
        return Begun(generation)

    def prepare(self, names: Sequence[str], attempt: Attempt) -> Generator[Any, Any, Prepared]:
        """The stages in one attempt, as activities/preparation.py: until one is refused, or has to wait."""
        done: Prepared = {}
        for name in names:
            if name == "freeze":
                yield "the freezes are read"
                if self.run.is_frozen():
                    return done
                done[name] = ""
                continue
            if not self.run.applies(name):
                done[name] = ""
                continue
            body = self.plan_transition if name == "transition" else getattr(self, name)
            try:
                done[name] = yield from body(attempt)
            except Unavailable:
                return done
            if name != "transition" and done[name]:
                return done
        return done

    def resolve_snapshots(self, attempt: Attempt) -> Steps:
        """They are all there. A rollback to a generation of other parts than those that are placed is placed first."""
        yield "found"
        target = self.record.generations[self.run.generation]
        self.run.places = needs_placement(cast("Any", self.record.placement), cast("Any", target))
        return ""

    def validate_generation(self, attempt: Attempt) -> Steps:
        """Why the generation is refused; empty where it is not."""
        model, generation, revision = self.change.model, self.run.generation, self.record.revision
        yield self.world.faults.validation_seconds(), ()
        sound = not self.world.faults.is_invalid(model, generation)
        refused = self.world.manifests.validate(model, revision, self.record.generations[generation], sound=sound)
        if refused:
            return refused
        self.record.generations[generation].validated = True
        yield "validated"
        return ""

    def place_model(self, attempt: Attempt) -> Steps:
        """A placement on what all others leave, adopted; an unchanged model stays where it is."""
        record, world = self.record, self.world
        yield self.world.faults.latency(), ()
        revision, manifest = world.manifests.of(self.change)
        served = model_as_served(cast("Any", world.journal), self.change.model, self.run.generation, by=manifest)
        wishes = model_problem(served)
        if record.placement is not None and record.placement.wishes == wishes and self._holds(record.placement):
            if self.change.kind in ROLLS_OUT and record.validated != record.accepted:
                self._go_by(record.placement)
            world.invariants.manifests.adopt(self.change, revision)
            return ""
        left = world.supply_left(but=self.change.model)
        found = draw_placement(world.random, wishes, left, world.plan_regions(), plan_id=world.journal.new_plan())
        if found is None:
            return "nothing can be placed"
        found.revision = revision
        self._go_by(found)
        world.invariants.manifests.adopt(self.change, revision)
        record.placement = found
        world.invariants.supply.check_plan({self.change.model: found})
        yield "the plan is adopted"
        return ""

    def plan_transition(self, attempt: Attempt) -> Steps:
        """The waves, planned once."""
        try:
            found: Moving = transition_plan.plan_transition(self.world, self.change, self.run.generation)
        except (FenceLost, Unavailable):
            raise
        except IPnextError as error:
            raise Failed(Reason.INTERNAL_ERROR, str(error)) from error
        yield "the waves are written down"
        return found

    def withdraw_model(self, attempt: Attempt) -> Steps:
        """Out of every gateway; a repair may have passed while it waited for a freeze."""
        self.world.journal.check_only_mover(self.change)
        silent, lost = [], self.world.out.lost
        for region in sorted(self.record.tables.keys() - lost):
            if not self.world.infra.reachable(region):
                silent.append(region)
                continue
            attempt.check()
            self.world.infra.regions[region].routes.pop(self.change.model, None)
            yield "a gateway forgets it"
        if silent:
            raise Unavailable(silent[0])
        self._check_lost(lost)
        for region in self.world.infra.regions.values():
            region.served.pop(self.change.model, None)
        self.record.tables.clear()
        yield "the tables are gone"
        return ""

    def release_model(self, attempt: Attempt) -> Steps:
        """All replicas end."""
        silent, lost = [], self.world.out.lost
        for key in sorted(self.record.deployments):
            attempt.check()
            try:
                if key.region not in lost:
                    self.world.infra.delete(key)
            except Unavailable:
                silent.append(key.region)
                continue
            yield "a replica set ends"
            attempt.check()
            self._check_lost(lost)
            self.record.deployments.pop(key, None)
        if silent:
            raise Unavailable(silent[0])
        return ""

    def _check_lost(self, lost: frozenset[str]) -> None:
        """As activities/state/drained_fleet.py `same`."""
        if self.world.out.lost != lost:
            msg = "a region was lost or came back meanwhile"
            raise Unavailable(msg)

    def finish(self, attempt: Attempt) -> Steps:
        """How the change ended, and a plan in force that says what runs where it did not come through."""
        change, record = self.change, self.record
        state, message = self.run.ended
        yield "about to end"
        if change.state.final:
            return None
        if state is ChangeState.DONE:
            self._record_success()
        before, former = record.placement, self.world.manifests.end(change, done=state is ChangeState.DONE)
        self.world.invariants.manifests.end(change, done=state is ChangeState.DONE)
        if deployment._follows_what_runs(change.kind, state):
            record.placement = _find_placement(change, record, self.world, former)
        elif change.kind in deployment._BRINGS_PARTS and self.world.manifests.places_other_parts(change.model):
            self.world.count("parts: none of former ones are kept")
            record.placement = _find_placement(change, record, self.world, None)
        if self.world.ends and self.run.reason is not None:
            reconciliation.record_again(self.world, change, state, self.run.reason)
        self.world.journal.end(change, state, message)
        if self.world.manifests.parts:
            if record.placement is not before and is_short(self.world, record.placement):
                reconciliation.replan_shortage(self.world, change)
            reconciliation.replan_stopped_move(self.world, change)
        if self.world.ends:
            reconciliation.record_repair(self.world, change.model)
        yield "the end is written down"
        return None

    def _record_success(self) -> None:
        record, generation = self.record, self.run.generation
        if self.change.kind is ChangeKind.RETIRE:
            record.serving, record.retired = None, True
        elif generation is not None and self.change.kind in BRINGS_NOTHING_NEW:
            self.world.invariants.changes.check_unchanged(self.change, generation)
        elif generation is not None:
            self.world.invariants.manifests.count_parts(self.change, generation)
            record.serving, record.observed = generation, record.revision_in_force
            self.world.manifests.keep_parts(self.change.model, generation)
            record.generations[generation].serving_at = self.world.clock.now
            self.world.invariants.changes.check_publish(self.change, generation)

    def _go_by(self, placement: Placement) -> None:
        """In the unit that adopts a placement.

        Its manifest is in force until the change ends, and for good if it succeeds.
        """
        self.world.journal.check_fence(self.change.id, 0)
        self.world.manifests.go_by(self.change, self.run.generation, placement.plan_id)

    def _holds(self, placement: Placement) -> bool:
        """Whether a placement in force still fits; its rows have carried its traffic since it was made."""
        left = self.world.supply_left(but=self.change.model)
        units = placed_units(placement)
        return bool(placement.replicas) and all(n <= left.get(row, 0.0) + 1e-6 for row, n in units.items())


def is_short(world: Any, placement: Placement | None) -> bool:
    """By the real function: what runs, and is the plan in force now, carries less than it gets."""
    if placement is None:
        return False
    plan = adoption._build_plan(placement.replicas, placement.traffic)
    return adoption.is_short(fleet_problem(world.fleet, [placement.wishes]), plan)


def _find_placement(change: Change, record: Record, world: Any, former: Placement | None) -> Placement | None:
    """What really runs, as activities/planning/adoption.py reads it; the placement in force where that says so already.

    By the wishes of the placement that the change had found, if it was placed; of the parts of the generation that
    serves, or that another change leads to. A plan of the fleet stays whose move of the model is recorded and open.
    """
    if _awaits_move(change, record, former):
        world.count("settle: a plan of the fleet awaits its move")
        return record.placement
    others = (m for m in reversed(record.transitions) if m.state in UNDER_WAY and m.id != change.id)
    moving = next(others, None) if world.manifests.parts else None
    options = _list_running(change, record, world.out.lost) if moving is None else [_target_of(moving)]
    number = moving.generation if moving else record.serving
    parts = set(record.generations[number].parts) if number else {row.part for row in options[-1][0]}
    options = [(tuple(row for row in rows if row.part in parts), shares) for rows, shares in options]
    placed = record.placement
    by = former or placed
    fits = by is None or adoption._fit(by.wishes, parts, exactly=record.former is None)
    wishes, revision = (by.wishes, by.revision) if by else (model_problem(record.in_force), record.revision_in_force)
    if not adoption._fit(wishes, parts, exactly=record.former is None):
        wishes = model_problem(model_as_served(cast("Any", world.journal), change.model, number))
        revision = record.revision_in_force
    states = [CurrentState(replicas=rows, traffic=shares) for rows, shares in options]
    actual = states[-1]
    if by and fits:
        actual = adoption.choose_carried(fleet_problem(world.fleet, [by.wishes]), states)
    replicas, traffic = actual.replicas, actual.traffic
    same = placed and by and by.wishes == placed.wishes and fits
    if same and _rows(placed.replicas, placed.traffic) == _rows(replicas, traffic):
        return placed
    if not replicas:
        return None
    return Placement(change.model, world.journal.new_plan(), wishes, replicas, traffic, revision)


def _awaits_move(change: Change, record: Record, former: Placement | None) -> bool:
    placed = record.placement
    if placed is None or record.serving is None or (former and former.wishes != placed.wishes):
        return False
    move_id = f"move-{placed.plan_id}-{change.model}"
    if not any(other.id == move_id and other is not change and not other.state.final for other in record.changes):
        return False
    return adoption._fit(placed.wishes, set(record.generations[record.serving].parts), exactly=record.former is None)


def _list_running(
    change: Change, record: Record, lost: frozenset[str]
) -> list[tuple[tuple[ReplicaCount, ...], tuple[TrafficShare, ...]]]:
    """What runs, last; before it the same with users where they were, if the change left them elsewhere."""
    model, ended = change.model, next((m for m in reversed(record.transitions) if m.id == change.id), None)
    before = [state_of(ended.transition.origin, model).shares] if ended else []
    before.append(adoption.planned_shares(record.placement.traffic if record.placement else (), record.serving or 0))
    parts = record.generations[record.serving].parts if record.serving else ()
    left = [found for found in record.deployments.values() if found.key.region not in lost]
    whole = adoption.hold_whole(cast("Any", left), record.serving or 0, parts)
    demanding = {item.region for item in record.in_force.spec.demand}
    replicas = tuple(
        ReplicaCount.from_trusted(model, key.part, key.region, key.hardware, d.replicas)
        for key, d in sorted(record.deployments.items())
        if d.replicas
    )
    seen = {region: table.shares for region, table in record.tables.items() if region in demanding}
    restored = {region: adoption.restore_shares(region, shares, before, whole) for region, shares in seen.items()}
    found = [seen] if restored == seen else [restored, seen]
    return [(replicas, _traffic(model, shares)) for shares in found]


def _traffic(model: str, found: Mapping[str, tuple[Any, ...]]) -> tuple[TrafficShare, ...]:
    sent: dict[tuple[str, str], float] = {}
    for region, shares in found.items():
        for share in shares:
            sent[region, share.to] = sent.get((region, share.to), 0.0) + share.fraction
    return tuple(
        TrafficShare.from_trusted(model, origin, to, min(1.0, fraction))
        for (origin, to), fraction in sorted(sent.items())
        if fraction > 0
    )


def _target_of(moving: Moving) -> tuple[tuple[ReplicaCount, ...], tuple[TrafficShare, ...]]:
    """By the real function: where a transition of another change leads."""
    state = adoption.target_state(moving.transition)
    return state.replicas, state.traffic


def _rows(replicas: Any, traffic: Any) -> tuple[Any, Any]:
    return (
        {(r.part, r.region, r.hardware): r.count for r in replicas if r.count},
        {(t.origin, t.to): round(t.fraction, 6) for t in traffic if t.fraction > 0},
    )
