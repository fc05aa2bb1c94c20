"""The transition of one model: its waves are planned, then walked, capacity first and traffic after.

Each activity computes the state it has to reach from the stored transition and brings it about, so it may be run again
at any time. A wave's outcome is an answer (WaveResult), not an error; errors are for what a retry may heal.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.admitting import not_swapped, planned_waves, price_of, way_back
from activities.causes import first_lacking, note_first, worst_region
from activities.drained import Drained, unchanged
from activities.gate_windows import counted_since, former_generation, opened, traffic_of
from activities.gates import Asked, errors_only, judge
from activities.problems import units_in_use
from activities.pulse import still_ours
from activities.regions import (
    Failure,
    first_failure,
    missing_replicas,
    observe,
)
from activities.routing import Gateways
from activities.swapping import Announcement, while_swapped
from activities.undoing import held_for_lack, none_more, unfreed, waiting
from activities.waiting import Deadline, beat
from activities.wanted import Facts, read_facts, shrinking_first, spared, wanted_deployments, wanted_shares
from activities.waves import (
    ModelState,
    Phase,
    brought_up,
    peak,
    planned_state,
    running_state,
    state_at,
    state_back,
    state_undone,
    swaps,
)
from ipnext.errors import NotFound, RegionUnreachable, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.cause import GATE, STEPS, Cause, Place
from ipnext.model.deployment import Deployment, RegionState, ReplicaPhase, RouteShare
from ipnext.model.lifecycle import ChangeKind, StageInput, TransitionPlanned, WaveInput, WaveResult
from ipnext.model.registry import GenerationState
from ipnext.model.rollout import Transition, TransitionState
from ipnext.model.status import ConditionType, Reason
from ipnext.store.placements import Units
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository
from ipnext.store.session import Store

_UNASKED = frozenset({ChangeKind.ROLLBACK, ChangeKind.MOVE})
"""Kinds of changes that bring no new generation: nobody has to approve them."""


_ASKED_BACK = frozenset({Reason.SUPERSEDED, Reason.ROLLED_BACK, Reason.ABORTED})
"""Reasons of a way back that someone asked for: nothing failed."""


@dataclass(frozen=True, slots=True)
class _Left:
    """What a release leaves as it is: users of these regions, and replicas that hold a (region, generation) of these."""

    users: Collection[str] = ()
    needed: frozenset[tuple[str, int]] = frozenset()


class TransitionActivities:
    """Needs the store and the infrastructure. `pause` stands in for sleeping."""

    def __init__(
        self, store: Store, infrastructure: Infrastructure, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._pause = pause

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (
            self.plan_transition,
            self.ensure_capacity,
            self.shift_traffic,
            self.check_gate,
            self.release_capacity,
        )

    @activity.defn(name="plan_transition", no_thread_cancel_exception=True)
    def plan_transition(self, stage: StageInput) -> TransitionPlanned:
        """Plan the waves from what runs to the plan's placement, once for each change. The change's id names them.

        Refused where no safe sequence exists. Unavailable while only another model's transition holds the supply that
        the waves need, or while the owner wants it to wait for supply: trying again later helps.
        """
        with self._store.begin() as repository:
            known = _find(repository, stage.change_id)
            in_use = units_in_use(repository, but=stage.model)
            record = known or self._planned(repository, stage, in_use)
            rollout = repository.model(stage.model).manifest.spec.rollout
            price = price_of(record.transition, not_swapped(repository, stage, record.transition))
            back = way_back(repository, stage, record.transition, in_use)
            if known is None and record.transition.refused is None:
                _mark_rolling_out(repository, stage)
                if price:
                    repository.add_event(stage.model, "Admitted", f"generation {stage.generation}: {price}")
        return TransitionPlanned(
            transition_id=record.id,
            waves=len(record.transition.waves),
            refused=record.transition.refused,
            deadline_seconds=rollout.deadline_seconds,
            approval="none" if stage.kind in _UNASKED else rollout.approval,
            manual_deadline_seconds=rollout.manual_deadline_seconds,
            on_newer=rollout.on_newer,
            gates=tuple(wave.gate for wave in record.transition.waves),
            price=price,
            back=back,
        )

    @activity.defn(name="ensure_capacity", no_thread_cancel_exception=True)
    def ensure_capacity(self, wave: WaveInput) -> WaveResult:
        """Add the wave's replicas and wait until they and the target generation's others are ready, at most `deadline_seconds`.

        Ends at once where a replica cannot load the generation. Unreachable regions are asked again until the deadline.
        """
        deadline = Deadline(wave.deadline_seconds, pause=self._pause)
        with self._store.begin(wave.model) as repository:
            if wave.back and wave.reason not in _ASKED_BACK:
                _note_cause(repository, wave)
            if not wave.back:
                repository.advance_transition(wave.transition_id, state=TransitionState.RUNNING)
            still_ours()
            facts, state = _reach(repository, wave, "scaled_up")
            stuck = _stuck(facts, state, repository.transition(wave.transition_id), wave)
            if stuck is not None:
                return stuck
            full = _unfreed(facts, state, repository.transition(wave.transition_id), wave)
            wanted = [found for found in wanted_deployments(facts, state) if found.key.region not in full]
            for deployment in wanted:
                repository.put_deployment(deployment)
            transition = repository.transition(wave.transition_id).transition
            needed = _reach(repository, wave, "released")[1] if wave.back else _brought_up(transition, wave)
        if not wave.back and wave.index == 0:
            strays = _stray(facts, transition)
            for deployment in strays if strays and self._known_routes(facts) else ():
                self._release(facts, deployment, keep=False)
        running = {key: stored.replicas for key, stored in facts.deployments.items()}
        told = shrinking_first((found for found in wanted if found.key.region not in facts.lost), running)
        if not wave.back:
            self._until_drained(told, deadline)
        announce = self._announcement(facts, wanted) if swaps(transition, wave.model, wave.index) else None
        result = self._until_ready(wave, needed.outside(facts.lost | full), told, deadline, announce=announce)
        if result.ok and full:
            message = f"{', '.join(sorted(full))} could not let go of what came later, so there is no room for what was before"
            result = WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message=message)
        self._note(wave, ConditionType.CAPACITY_READY, result)
        return result

    @activity.defn(name="shift_traffic", no_thread_cancel_exception=True)
    def shift_traffic(self, wave: WaveInput) -> WaveResult:
        """Send the traffic by the wave's shares; on the way back, by the origin's. Returns once all gateways follow.

        No gateway moves on while another one that has to can't be reached: its users would come on top of those who stay.
        A rollback and a way back don't wait for it.
        Unavailable while replicas that were ready for it are so no more: they may have ended since, as during a pause.
        """
        with self._store.read() as repository:
            facts, state = _reach(repository, wave, "routed")
            transition = repository.transition(wave.transition_id).transition
            gate = repository.model(wave.model).manifest.spec.rollout.gate
            there = _reach(repository, wave, "released")[1] if wave.back else None
            urgent = wave.back or repository.change(wave.transition_id).kind is ChangeKind.ROLLBACK
        deployments = _within(there, tuple(facts.deployments.values()))
        shares = wanted_shares(facts, state, deployments)
        regions = {*shares, *(region for _, region, _ in state.slots)} - facts.lost
        states, silent = observe(self._infrastructure, regions, [wave.model])
        if not urgent:
            _check_reached(facts, shares, silent)
        if not wave.back:
            _check_ready(wave, state.outside(facts.lost), states)
        stay = waiting(facts, shares, states) if wave.back else ()
        Gateways(self._store, self._infrastructure, facts, beat=beat).follow(shares, deployments, waiting=stay)
        hold = 0.0 if wave.back else transition.waves[wave.index].hold_seconds
        former = former_generation(transition, wave.model, wave.generation) if gate.compares else None
        new = traffic_of(wave.model, wave.generation, states.values())
        old = traffic_of(wave.model, former, states.values()) if former else ()
        baseline, window = opened(former, new, old, sketched=gate.judges_drift)
        result = WaveResult(ok=True, hold_seconds=hold, baseline=baseline, window=window)
        self._note(wave, ConditionType.ROUTES_READY, result)
        return result

    @activity.defn(name="check_gate", no_thread_cancel_exception=True)
    def check_gate(self, wave: WaveInput) -> WaveResult:
        """Whether the target generation answers well enough since the wave's traffic moved, and still stands.

        It may be asked at any time of the hold, as `early`, and after it. `again_seconds` above 0 says that answers are
        too few and may still come.
        """
        with self._store.read() as repository:
            facts, state = _reach(repository, wave, "routed")
            asked = _asked(repository, wave, state)
        regions = {region for _, region, _ in state.slots} - facts.lost
        states, silent = observe(self._infrastructure, regions, [wave.model])
        if silent:
            msg = f"region {silent[0]!r} can't be reached, so the gate knows too little"
            if wave.early:
                return WaveResult(ok=True, message=msg)
            raise RegionUnreachable(msg)
        new = traffic_of(wave.model, wave.generation, states.values())
        former = wave.window.former if wave.window else None
        old = traffic_of(wave.model, former, states.values()) if former else ()
        failure = first_failure(wave.model, wave.generation, states.values())
        verdict = judge(asked, counted_since(wave.baseline, wave.window, new, old))
        if failure is None and verdict.ok:
            return WaveResult(ok=True, message=verdict.message, again_seconds=verdict.again_seconds)
        if failure is None:
            failure = Failure(Reason.GATE_FAILED, verdict.message, Place(region=worst_region(wave.baseline, new)))
        result = WaveResult(ok=False, reason=failure.reason, message=failure.message, place=failure.place)
        self._note_gate(wave, result)
        return result

    @activity.defn(name="release_capacity", no_thread_cancel_exception=True)
    def release_capacity(self, wave: WaveInput) -> WaveResult:
        """Take away what the wave no longer needs: out of the routers first, then the replicas and snapshots.

        The last wave, and the way back, leave exactly the state they lead to; former generations stay loaded as far as
        the rollout's `keepWarm` says. Writes down how far the transition is.
        """
        with self._store.read() as repository:
            facts, state = _reach(repository, wave, "released")
            record = repository.transition(wave.transition_id)
        last = _is_last(wave, record)
        wanted = whole = spared(facts, _end(wave, record), wanted_deployments(facts, state))
        if wave.back and wave.by_waves:
            wanted = none_more(wanted, facts.deployments)
        gone = [d for d in _left_over(facts, wanted) if last or _known(record.transition, wave.model, d)]
        shares = wanted_shares(facts, state, wanted)
        if last:
            shares = {region: found for region, found in shares.items() if found or region in facts.tables}
        kept = wanted if last else (*wanted, *(d for d in _left_over(facts, wanted) if d not in gone))
        needed = held_for_lack(whole, facts.deployments, shares) if wave.back and wave.by_waves else frozenset()
        left = _Left(self._waiting(facts, shares, wanted), needed)
        unreachable = self._shrink(facts, shares, kept, wanted, gone, left=left)
        if unreachable is not None:
            raise unreachable
        self._write_progress(wave, record, last=last)
        return WaveResult(ok=True)

    def _known_routes(self, facts: Facts) -> bool:
        """Whether every gateway follows what is stored: one that was told more, and whose answer nobody wrote down, may send anywhere."""
        states, silent = observe(self._infrastructure, facts.tables.keys() - facts.lost, [facts.model])
        ahead = (state.routes.get(facts.model, 0) > facts.tables[name].revision for name, state in states.items())
        return not silent and not any(ahead)

    def _planned(self, repository: Repository, stage: StageInput, in_use: Units) -> TransitionRecord:
        placed = repository.placement(stage.model)
        if placed is None:
            msg = f"no plan is in force that places {stage.model!r}; publish or apply it so that one is made"
            raise NotFound(msg)
        deployments, tables = repository.deployments(stage.model), repository.routes(stage.model)
        demanding = {item.region for item in repository.model(stage.model).manifest.spec.demand}
        lost = Drained.of(repository.drains()).lost
        origin = running_state(stage.model, deployments, tables, demanding=demanding, lost=lost)
        to = planned_state(stage.model, stage.generation, placed.state)
        transition = planned_waves(repository, stage, origin, to, in_use)
        record = TransitionRecord(
            id=stage.change_id,
            model=stage.model,
            change_id=stage.change_id,
            generation=stage.generation,
            transition=transition,
            state=TransitionState.REFUSED if transition.refused else TransitionState.PLANNED,
            created_at=datetime.now(UTC),
        )
        return repository.save_transition(record)

    def _until_drained(self, told: Sequence[Deployment], deadline: Deadline) -> None:
        """Wait for what still streams its last answers in these regions: until it ends it takes the units that come next."""
        keys = {deployment.key for deployment in told if deployment.drain_seconds is not None}
        while keys and not deadline.passed:
            states, _ = observe(self._infrastructure, {key.region for key in keys}, sorted({key.model for key in keys}))
            replicas = [replica for state in states.values() for replica in state.replicas]
            left = [r.id for r in replicas if r.key in keys and r.phase is ReplicaPhase.DRAINING]
            if not left:
                return
            deadline.wait(f"{', '.join(left)} streams its last answers")

    def _announcement(self, facts: Facts, wanted: Sequence[Deployment]) -> Announcement:
        return Announcement(Gateways(self._store, self._infrastructure, facts, beat=beat), facts, wanted)

    def _until_ready(
        self,
        wave: WaveInput,
        needed: ModelState,
        wanted: Sequence[Deployment],
        deadline: Deadline,
        *,
        announce: Announcement | None = None,
    ) -> WaveResult:
        """Wait for the replicas of `needed`: on the way back the origin's alone, for the others may never get ready."""
        pending = list(wanted)
        while True:
            if announce is not None:
                announce.make()
            pending = self._apply(pending)
            states, silent = observe(self._infrastructure, {d.key.region for d in wanted}, [wave.model])
            lacking = missing_replicas(wave.model, needed, states)
            failure = None if wave.back else first_failure(wave.model, wave.generation, states.values())
            if failure is None and not lacking and not pending:
                return WaveResult(ok=True, message=f"{sum(d.replicas for d in wanted)} replicas ready")
            if failure is None and deadline.passed:
                failure = _too_late(wave, lacking, silent, first_lacking(wave.model, needed, states))
            if failure is not None:
                return WaveResult(ok=False, reason=failure.reason, message=failure.message, place=failure.place)
            deadline.wait("; ".join(lacking) or f"regions {', '.join(silent)} can't be reached")

    def _apply(self, deployments: Iterable[Deployment]) -> list[Deployment]:
        """Tell the infrastructure; those whose region can't be reached are returned. A silent region is asked once."""
        untold: list[Deployment] = []
        silent: set[str] = set()
        for deployment in deployments:
            if deployment.key.region in silent:
                untold.append(deployment)
                continue
            still_ours()
            try:
                self._infrastructure.apply(deployment)
            except Unavailable:
                silent.add(deployment.key.region)
                untold.append(deployment)
        return untold

    def _waiting(self, facts: Facts, shares: dict[str, Any], wanted: Iterable[Deployment]) -> Collection[str]:
        """Users' regions that stay as they are; none where nobody is sent anywhere else, as in most releases."""
        if all(found == facts.tables[origin].shares for origin, found in shares.items() if origin in facts.tables):
            return ()
        states, _ = observe(self._infrastructure, {d.key.region for d in wanted} - facts.lost, [facts.model])
        return waiting(facts, shares, states)

    def _shrink(
        self,
        facts: Facts,
        shares: dict[str, Any],
        kept: Sequence[Deployment],
        wanted: Sequence[Deployment],
        gone: Sequence[Deployment],
        *,
        left: _Left = _Left(),
    ) -> Unavailable | None:
        """Everywhere as far as it can be reached; the first region that can't is returned as an error.

        What a gateway that does not follow still sends to stays as it is, and what is `left`.
        """
        unreachable: Unavailable | None = None
        gateways = Gateways(self._store, self._infrastructure, facts, beat=beat)
        try:
            gateways.follow(shares, kept, waiting=left.users)
        except Unavailable as error:
            unreachable = error
        needed = left.needed | gateways.still_sent(shares)
        for deployments, keep in ((wanted, True), (gone, False)):
            for deployment in deployments:
                if not _answers(facts.deployments.get(deployment.key), needed):
                    unreachable = self._release(facts, deployment, keep=keep) or unreachable
        return unreachable

    def _release(self, facts: Facts, deployment: Deployment, *, keep: bool) -> Unavailable | None:
        """The infrastructure first: what the store no longer names must be gone. A lost region is told when it is back.

        One that has come back meanwhile was told what the store named then, so it has to be asked after all. Nothing goes
        where a region was lost meanwhile: its users may have been sent to what was to go.
        """
        model = facts.model
        still_ours()
        try:
            unchanged(self._store, facts.lost)
            if deployment.key.region in facts.lost:
                pass
            elif keep:
                self._infrastructure.apply(deployment)
            else:
                self._infrastructure.delete(deployment.key)
        except Unavailable as error:
            return error
        with self._store.begin(model) as repository:
            still_ours()
            if (
                deployment.key.region in facts.lost
                and deployment.key.region not in Drained.of(repository.drains()).lost
            ):
                return Unavailable(f"region {deployment.key.region!r} is back, and still holds what was to go")
            if keep:
                repository.put_deployment(deployment)
            else:
                repository.delete_deployment(deployment.key)
        return None

    def _write_progress(self, wave: WaveInput, record: TransitionRecord, *, last: bool) -> None:
        with self._store.begin(wave.model) as repository:
            still_ours()
            if wave.back:
                if not last:
                    return
                message = f"{wave.reason}: {wave.message}"
                repository.advance_transition(record.id, state=TransitionState.ROLLED_BACK, message=message)
                return
            state = TransitionState.DONE if last else TransitionState.RUNNING
            repository.advance_transition(record.id, waves_done=max(wave.index + 1, record.waves_done), state=state)

    def _note(self, wave: WaveInput, condition: ConditionType, result: WaveResult) -> None:
        """Write a condition, and an event for each wave."""
        where = "on the way back" if wave.back else f"wave {wave.index + 1}"
        reason = result.reason
        message = f"generation {wave.generation}, {where}" + (f": {result.message}" if result.message else "")
        with self._store.begin(wave.model) as repository:
            repository.set_condition(wave.model, condition, "True" if result.ok else "False", reason, message)
            cause = None if result.ok or wave.back else _cause(wave, result, STEPS[condition])
            repository.add_event(wave.model, condition.value, message, detail=cause.detail if cause else None)

    def _note_gate(self, wave: WaveInput, result: WaveResult) -> None:
        """An event that says which answers failed the gate."""
        with self._store.begin(wave.model) as repository:
            message = f"generation {wave.generation}, wave {wave.index + 1}: {result.message}"
            repository.add_event(wave.model, result.reason.value, message, detail=_cause(wave, result, GATE).detail)


def _reach(repository: Repository, wave: WaveInput, phase: Phase) -> tuple[Facts, ModelState]:
    transition = repository.transition(wave.transition_id).transition
    find = (state_undone if wave.by_waves else state_back) if wave.back else state_at
    return read_facts(repository, wave.model, wave.generation), find(transition, wave.model, wave.index, phase)


def _brought_up(transition: Transition, wave: WaveInput) -> ModelState:
    return brought_up(transition, wave.model, wave.index, wave.generation)


def _unfreed(facts: Facts, state: ModelState, record: TransitionRecord, wave: WaveInput) -> frozenset[str]:
    """On a way back wave by wave: regions that could not be undone so far, and stay as they are."""
    if not (wave.back and wave.by_waves):
        return frozenset()
    slots = peak(record.transition, wave.model)
    meanwhile = while_swapped(record.transition, wave.model, wave.index)
    found = unfreed(state, facts.deployments.values(), facts.tables.values(), slots.keys(), meanwhile=meanwhile)
    return found - facts.lost


def _stuck(facts: Facts, state: ModelState, record: TransitionRecord, wave: WaveInput) -> WaveResult | None:
    """A run on its way to a lost region goes no further, but back, where the wave counts on what it has to spare."""
    lost = facts.lost.intersection(region for _, region, _ in _end(wave, record).slots)
    if wave.back or not lost:
        return None
    slots = peak(record.transition, wave.model)
    kept = unfreed(state, facts.deployments.values(), (), slots.keys()) - facts.lost
    if not kept:
        return None
    message = f"on its way to {min(lost)}, which is lost; {', '.join(sorted(kept))} keeps what answers there"
    return WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message=message, place=Place(region=min(lost)))


def _is_last(wave: WaveInput, record: TransitionRecord) -> bool:
    """Whether nothing follows: the last wave, all of a way back in one step, the first wave undone."""
    if wave.back:
        return wave.index == 0 or not wave.by_waves
    return wave.index + 1 == len(record.transition.waves)


def _end(wave: WaveInput, record: TransitionRecord) -> ModelState:
    """The state that a run is on its way to."""
    transition = record.transition
    if wave.back:
        return state_undone(transition, wave.model, 0, "released")
    return state_at(transition, wave.model, len(transition.waves) - 1, "released")


def _asked(repository: Repository, wave: WaveInput, state: ModelState) -> Asked:
    """What the gate of a wave is asked now. Of a rollback only errors: its generation has served before."""
    rollout = repository.model(wave.model).manifest.spec.rollout
    record, window = repository.transition(wave.transition_id), wave.window
    if window is None or repository.change(record.change_id).kind is ChangeKind.ROLLBACK:
        return errors_only(rollout.max_error_rate, rollout.gate, early=wave.early)
    answering = {share.generation for shares in state.shares.values() for share in shares}
    return Asked(
        gate=rollout.gate,
        max_error_rate=rollout.max_error_rate,
        early=wave.early,
        wait_left=min(rollout.gate.wait_seconds, wave.deadline_seconds) - wave.watched_seconds,
        former=window.former if window.former in answering else None,
    )


def _find(repository: Repository, transition_id: str) -> TransitionRecord | None:
    try:
        return repository.transition(transition_id)
    except NotFound:
        return None


def _mark_rolling_out(repository: Repository, stage: StageInput) -> None:
    if repository.generation(stage.model, stage.generation).state is not GenerationState.SERVING:
        repository.set_generation_state(stage.model, stage.generation, GenerationState.ROLLING_OUT)


def _left_over(facts: Facts, wanted: Sequence[Deployment]) -> list[Deployment]:
    keys = {deployment.key for deployment in wanted}
    return [deployment for key, deployment in facts.deployments.items() if key not in keys]


def _within(state: ModelState | None, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """Those whose slot the state holds: on a way back the others may never have started. All of them without a state."""
    if state is None:
        return deployments
    return tuple(d for d in deployments if (d.key.part, d.key.region, d.key.hardware) in state.slots)


def _answers(stored: Deployment | None, needed: Collection[tuple[str, int]]) -> bool:
    """Whether a replica set holds a generation that is needed in its region."""
    return stored is not None and any((stored.key.region, number) in needed for number in stored.generations)


def _stray(facts: Facts, transition: Transition) -> list[Deployment]:
    """Replica sets that answer nobody and that the transition knows nothing of: they hold units that it may need.

    So does one that was dropped when its region was lost and that came back with it.
    """
    sent = {(s.to, s.generation) for table in facts.tables.values() for s in table.shares if s.fraction > 0}
    return [
        found
        for found in facts.deployments.values()
        if found.key.region not in facts.lost
        and not _answers(found, sent)
        and not _known(transition, facts.model, found)
    ]


def _known(transition: Transition, model: str, deployment: Deployment) -> bool:
    """Whether the transition itself ever held this slot (others are left for the last wave)."""
    key = deployment.key
    return (key.part, key.region, key.hardware) in peak(transition, model)


def _check_reached(facts: Facts, shares: Mapping[str, Sequence[RouteShare]], silent: Iterable[str]) -> None:
    """RegionUnreachable where a gateway that has to move does not answer."""
    for region in silent:
        table = facts.tables.get(region)
        if region in shares and tuple(shares[region]) != (table.shares if table else ()):
            msg = f"region {region!r} can't be reached, so no gateway moves on yet"
            raise RegionUnreachable(msg)


def _check_ready(wave: WaveInput, state: ModelState, states: Mapping[str, RegionState]) -> None:
    """Unavailable where a region that answers has less of the generation ready than the wave's traffic needs."""
    counts = {
        held: count for held, count in state.counts.items() if held[1] == wave.generation and held[0][1] in states
    }
    lacking = missing_replicas(wave.model, replace(state, counts=counts), states)
    if lacking:
        msg = f"ready no more: {'; '.join(lacking)}"
        raise Unavailable(msg)


def _too_late(wave: WaveInput, lacking: Sequence[str], silent: Sequence[str], first: Place) -> Failure:
    if silent:
        message = f"regions {', '.join(silent)} could not be reached in time"
        return Failure(Reason.REGION_UNREACHABLE, message, Place(region=silent[0]))
    seconds = f"{wave.deadline_seconds:g} s"
    return Failure(Reason.DEADLINE_EXCEEDED, f"not ready within {seconds}: {'; '.join(lacking)}", first)


def _cause(wave: WaveInput, result: WaveResult, step: str) -> Cause:
    """The transition has the name of its change."""
    place = result.place.model_copy(update={"step": step})
    return Cause(change=wave.transition_id, reason=result.reason, message=result.message, place=place)


def _note_cause(repository: Repository, wave: WaveInput) -> None:
    """Why the run goes back, where no activity that saw it wrote it down: one that found no answer at all."""
    regions = repository.fleet().spec.regions
    cause = Cause(change=wave.transition_id, reason=wave.reason, message=wave.message)
    note_first(repository, wave.model, cause, regions=regions)
