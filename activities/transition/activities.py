"""Activities of one model's transition: plan its waves, then execute them, capacity first and traffic after.

Each activity computes the state to reach from the stored transition and establishes it, so it can be retried at any
time. A wave's outcome is returned (WaveResult), not raised; errors are for failures that a retry may resolve.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from temporalio import activity

from activities.regions.recovery import has_ready_replicas
from activities.runtime.deadline import Deadline, beat
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.fence import of_a_wave, still_ours
from activities.state.desired import DesiredFacts
from activities.state.drained_fleet import same
from activities.state.failure_cause import note_first, worst_region
from activities.state.observed import Failure, first_failure, missing_replicas, observe
from activities.state.replica_sets import choose_kept_sets, shrinking_first, wanted_deployments
from activities.state.restored import state_before
from activities.state.routes.route_shares import wanted_shares
from activities.state.shadow_sets import add_shadow
from activities.state.wave_state import ModelWaveState
from activities.transition.admission import AT_ONCE
from activities.transition.draft import Draft
from activities.transition.gate.verdict import GateInput, errors_only, judge
from activities.transition.gate.window import count_since, former_generation, open_window, refuse_uncompared, traffic_of
from activities.transition.hot_swap import Announcement, leave_what_is_sent, not_gone_back
from activities.transition.revert import (
    answers_at_all,
    choose_told,
    find_unrestored,
    heard,
    none_more,
    not_as_before,
    still_answered,
    waiting,
)
from activities.transition.scale_down import (
    CapacityRelease,
    EarlyRelease,
    ReleaseExceptions,
    find_delayed,
    find_leftovers,
    is_own_slot,
    shrinking,
    stray,
)
from activities.transition.scale_up import Capacity
from activities.transition.step_limit import check_growth
from activities.transition.traffic_shift import Gateways
from activities.transition.wave_context import WaveContext, list_routable
from ipnext.errors import RegionUnreachable, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.gate.gate import GateWindow
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.transition_run import TransitionPlanned, WaveInput, WaveResult
from ipnext.model.lifecycle.failure_cause import GATE, STEPS, Cause, Place
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.model.registry.registry import GenerationState
from ipnext.store.operations.repetition import VALIDATED
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store

DRAFTS = 3
"""Searches for waves outside the writing unit of work before the search runs inside it."""

_UNASKED = frozenset({ChangeKind.ROLLBACK, ChangeKind.MOVE, ChangeKind.REPAIR})
"""Kinds of changes that bring no new generation: they need no approval."""


_ASKED_BACK = frozenset({Reason.SUPERSEDED, Reason.ROLLED_BACK, Reason.ABORTED})
"""Reasons of a revert that a caller requested: nothing failed."""


class TransitionActivities:
    """Activities of a transition, on the store and the infrastructure. `pause` replaces `time.sleep`."""

    def __init__(
        self, store: Store, infrastructure: Infrastructure, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._pause = pause

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (
            self.plan_transition,
            self.ensure_capacity,
            self.shift_traffic,
            self.check_gate,
            self.release_capacity,
        )

    @activity.defn(name="plan_transition", no_thread_cancel_exception=True)
    @of_a_step
    def plan_transition(self, stage: StageInput) -> TransitionPlanned:
        """Plan the waves from the running state to the plan's placement, once per change. The change's id names them.

        The transition is refused if no safe sequence exists. Raises Unavailable while another change moves the model,
        while only another model's transition holds the supply that the waves need, or while the owner prefers to wait
        for supply: a later retry can succeed.
        """
        draft = self._draft_transition(stage)
        record, rollout = draft.record, draft.rollout
        return TransitionPlanned(
            transition_id=record.id,
            waves=len(record.transition.waves),
            refused=record.transition.refused or _rerun_refusal(record),
            fence=record.fence,
            deadline_seconds=rollout.deadline_seconds,
            approval="none" if stage.kind in _UNASKED else rollout.approval,
            manual_deadline_seconds=rollout.manual_deadline_seconds,
            on_newer=rollout.on_newer,
            gates=tuple(wave.gate for wave in record.transition.waves),
            price=draft.price,
            back=draft.back,
            times_replicas=stage.kind in VALIDATED and draft.times_replicas,
        )

    @activity.defn(name="ensure_capacity", no_thread_cancel_exception=True)
    @of_a_wave
    @of_a_step
    def ensure_capacity(self, wave: WaveInput) -> WaveResult:
        """Add the wave's replicas and wait until they and the target generation's others are ready.

        It waits at most `deadline_seconds`.

        Ends at once if a replica cannot load the generation. Unreachable regions are retried until the deadline. One
        call polls for a short time only: if more is needed, the result has `again_seconds`, and the workflow sleeps in
        between.
        """
        left = wave.deadline_seconds - wave.waited_seconds
        with self._store.begin(wave.model) as repository:
            still_ours(repository)
            if wave.back and wave.reason not in _ASKED_BACK:
                _note_cause(repository, wave)
            repository.advance_transition(wave.transition_id, state=TransitionState.RUNNING)
            _rest(repository, wave, rests=False)
            reaching = WaveContext.read(repository, wave, "scaled_up")
            if wave.back:  # a run that takes over continues here: later waves never began, or are undone
                done = min(reaching.record.waves_done, wave.index)
                repository.advance_transition(wave.transition_id, waves_done=done)
            if (stuck := reaching.stuck) is not None:
                return stuck
            facts, full = reaching.facts, reaching.unfreed_regions
            wanted = [found for found in wanted_deployments(facts, reaching.state) if found.key.region not in full]
            fewer = () if wave.back else shrinking(facts, wanted)
            strays = stray(facts, reaching.transition) if reaching.may_drop_strays else ()
            final = reaching.final_state if wave.back else None
            later = [found for found in find_delayed(wanted, strays, final) if found not in fewer]
            for deployment in wanted:
                if deployment not in fewer and deployment not in later:
                    repository.put_deployment(add_shadow(deployment, facts.shadow))
        capacity = Capacity(self._infrastructure, Deadline(left, pause=self._pause), facts.shadow)
        running = {key: stored.replicas for key, stored in facts.deployments.items()}
        told = shrinking_first(choose_told(facts, wanted, final), running)
        early = EarlyRelease(
            self._infrastructure,
            facts,
            self._releasing(facts),
            fewer=fewer,
            strays=strays,
            later=[found for found in later if found in told],
        )
        early.attempt()  # an unreachable region is retried below
        if not wave.back and (drains := capacity.until_drained(told)) is not None:
            return drains
        goes_over = reaching.is_swapping or leave_what_is_sent(facts.tables.values(), told)
        announce = self._announcement(facts, wanted) if goes_over else None
        needed = reaching.needed_state.outside(facts.lost | full)
        spared = reaching.uninvolved_regions
        result = capacity.until_ready(wave, needed, told, announce=announce, if_reachable=spared, early=early)
        if result.again_seconds:
            return result
        if result.ok and full:
            message = (
                f"{', '.join(sorted(full))} could not let go of what came later, "
                "so there is no room for what was before"
            )
            result = WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message=message)
        self._note(wave, ConditionType.CAPACITY_READY, result, rests=result.ok)
        return result

    @activity.defn(name="shift_traffic", no_thread_cancel_exception=True)
    @of_a_wave
    @of_a_step
    def shift_traffic(self, wave: WaveInput) -> WaveResult:
        """Send traffic by the wave's shares, or by the origin's in a revert.

        Return once all gateways have applied them.

        No gateway moves on while another one that has to move is unreachable: its users would come on top of those who
        stay. A rollback and a revert do not wait for it. No traffic moves if a region was lost during the transition
        and users would reach the new generation too fast, nor if the gate has nothing to compare with. Raises
        Unavailable while replicas that were ready for the wave no longer are: they may have ended since, as during a
        pause.
        """
        with self._store.read() as repository:
            reaching = WaveContext.read(repository, wave, "routed")
            found = repository.model(wave.model)
            urgent = wave.back or repository.change(wave.transition_id).kind in AT_ONCE
        rollout, serving = found.in_force.spec.rollout, found.serving_generation
        facts, state, transition = reaching.facts, reaching.state, reaching.transition
        deployments = list_routable(reaching)
        if wave.back and facts.lost:
            deployments = self._and_what_answers(facts, reaching.needed_regions, deployments)
        unready = self._list_unready(reaching)
        shares = still_answered(facts, transition, state, wanted_shares(facts, state, deployments, unready=unready))
        if not urgent and (result := check_growth(facts, transition, wave.index, shares, rollout)) is not None:
            self._note(wave, ConditionType.ROUTES_READY, result)
            return result
        refusal = refuse_uncompared(transition, wave.model, wave.generation, serving=serving, gate=rollout.gate)
        if not urgent and refusal is not None:
            self._note_gate(wave, refusal)
            return refusal
        regions = {*shares, *(region for _, region, _ in state.slots)} - facts.lost
        states, silent = observe(self._infrastructure, regions, [wave.model])
        if not urgent:
            _check_reached(facts, shares, silent)
        if not wave.back:
            _check_ready(wave, state.outside(facts.lost), states)
        self._begin_to_move(wave)
        stay = waiting(facts, shares, states) if wave.back else ()
        keeping = not_gone_back(wave.model, state, states) if wave.back and transition.refresh == "swap" else ()
        gateways = Gateways(self._store, self._infrastructure, facts, beat=beat)
        gateways.follow(shares, deployments, waiting=stay, keeping=keeping, apart=reaching.unchanged_regions)
        hold = 0.0 if wave.back else transition.waves[wave.index].hold_seconds
        former = former_generation(transition, wave.model, wave.generation)
        new = traffic_of(wave.model, wave.generation, states.values())
        old = traffic_of(wave.model, former, states.values()) if former else ()
        baseline, window = open_window(former, new, old, sketched=rollout.gate.judges_drift)
        result = WaveResult(ok=True, hold_seconds=hold, baseline=baseline, window=window)
        self._note(wave, ConditionType.ROUTES_READY, result, rests=True)
        return result

    @activity.defn(name="check_gate", no_thread_cancel_exception=True)
    @of_a_wave
    @of_a_step
    def check_gate(self, wave: WaveInput) -> WaveResult:
        """Check whether the target generation has answered well since the wave's traffic moved, and has not failed.

        May be called at any moment of the bake time, as `early`, and after it. If `again_seconds` is above 0, answers
        are too few and may still arrive.
        """
        with self._store.read() as repository:
            reaching = WaveContext.read(repository, wave, "routed")
            asked = _build_gate_input(repository, wave, reaching)
        regions = {region for _, region, _ in reaching.state.slots} - reaching.facts.lost
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
        verdict = judge(asked, count_since(wave.baseline, wave.window, new, old))
        if failure is None and verdict.ok:
            return WaveResult(ok=True, message=verdict.message, again_seconds=verdict.again_seconds)
        if failure is None:
            failure = Failure(Reason.GATE_FAILED, verdict.message, Place(region=worst_region(wave.baseline, new)))
        result = WaveResult(ok=False, reason=failure.reason, message=failure.message, place=failure.place)
        self._note_gate(wave, result)
        return result

    @activity.defn(name="release_capacity", no_thread_cancel_exception=True)
    @of_a_wave
    @of_a_step
    def release_capacity(self, wave: WaveInput) -> WaveResult:
        """Release the capacity that the wave no longer needs.

        Out of the routers first, then the replicas and snapshots. The last wave and a revert leave exactly the state
        that they lead to; former generations stay loaded as far as the rollout's `keepWarm` allows. Records the
        progress of the transition.
        """
        with self._store.read() as repository:
            reaching = WaveContext.read(repository, wave, "released")
        facts, state, record, last = reaching.facts, reaching.state, reaching.record, reaching.is_last
        target = wanted_deployments(facts, state)
        wanted = whole = choose_kept_sets(facts, reaching.needed_regions, target)
        if wave.back and wave.by_waves:
            wanted = none_more(wanted, facts.deployments)
        gone = [d for d in find_leftovers(facts, wanted) if last or is_own_slot(record.transition, wave.model, d)]
        sent = wanted_shares(facts, state, wanted, unready=self._list_unready(reaching))
        shares = still_answered(facts, reaching.transition, state, sent)
        if last:
            shares = {region: found for region, found in shares.items() if found or region in facts.tables}
        kept = wanted if last else (*wanted, *(d for d in find_leftovers(facts, wanted) if d not in gone))
        if wave.back:
            kept = heard(kept, whole, self._and_what_answers(facts, reaching.needed_regions, target))
        needed = find_unrestored(whole, facts.deployments, shares) if wave.back and wave.by_waves else frozenset()
        self._begin_to_move(wave)
        releasing = self._releasing(facts)
        apart = reaching.unchanged_regions
        left = ReleaseExceptions(releasing.waiting(shares, wanted), needed, self._keeping(reaching), apart)
        _, silent = observe(self._infrastructure, apart - facts.lost, [wave.model])
        wanted = tuple(found for found in wanted if found.key.region not in silent)
        gone = [found for found in gone if found.key.region not in silent]
        unreachable = releasing.shrink(shares, kept, wanted, gone, left=left)
        if unreachable is not None:
            raise unreachable
        self._write_progress(reaching)
        stays = not_as_before(facts, reaching.origin, shares) if wave.back and last else ""
        return WaveResult(ok=not stays, reason=Reason.REGION_UNREACHABLE if stays else Reason.SUCCEEDED, message=stays)

    def _draft_transition(self, stage: StageInput) -> Draft:
        """Return the transition of a change as stored.

        Waves are searched outside the writing unit, and compared before the write. If others meanwhile take supply that
        the waves count on, the waves are searched again; the last time inside the unit of work that writes them, which
        then delays other admissions and adoptions of plans. Writers that take no supply proceed in any case.
        """
        for _ in range(DRAFTS):
            with self._store.read() as repository:
                draft = Draft.read(repository, stage)
            if draft.known:
                return draft
            with self._store.begin(stage.model) as repository:
                repository.lock_plan_in_force()
                if draft.holds(repository, stage):
                    return self._save_draft(repository, stage, draft)
        with self._store.begin(stage.model) as repository:
            repository.lock_plan_in_force()
            draft = Draft.read(repository, stage)
            return draft if draft.known else self._save_draft(repository, stage, draft)

    def _save_draft(self, repository: Repository, stage: StageInput, draft: Draft) -> Draft:
        still_ours()
        record = repository.save_transition(draft.record, before=state_before(repository, stage.model))
        if record.transition.refused is None:
            _mark_rolling_out(repository, stage)
            if draft.price:
                repository.add_event(stage.model, "Admitted", f"generation {stage.generation}: {draft.price}")
        return replace(draft, record=record)

    def _and_what_answers(
        self, facts: DesiredFacts, counted_on: Collection[str], deployments: tuple[Deployment, ...]
    ) -> tuple[Deployment, ...]:
        """Add the replica sets that still answer in the remaining regions, if a revert counts on a lost one.

        They keep their users.
        """
        more = choose_kept_sets(facts, counted_on, deployments)[len(deployments) :]
        states, _ = observe(self._infrastructure, {found.key.region for found in more}, [facts.model])
        return deployments + tuple(found for found in more if answers_at_all(facts, found, states))

    def _list_unready(self, reaching: WaveContext) -> Collection[tuple[str, int]]:
        """(Region, generation) that no user is newly sent to: no wave waits for its replicas, and none is ready."""
        facts, unproven = reaching.facts, reaching.unproven
        states, _ = observe(self._infrastructure, {region for region, _ in unproven} - facts.lost, [facts.model])
        return frozenset(
            (region, number)
            for region, number in unproven
            if region not in states or not has_ready_replicas(facts, states[region], number)
        )

    def _releasing(self, facts: DesiredFacts) -> CapacityRelease:
        return CapacityRelease(self._store, self._infrastructure, facts)

    def _announcement(self, facts: DesiredFacts, wanted: Sequence[Deployment]) -> Announcement:
        return Announcement(Gateways(self._store, self._infrastructure, facts, beat=beat), facts, wanted)

    def _keeping(self, reaching: WaveContext) -> Collection[str]:
        """Regions whose routers forget nothing.

        When a swap is reverted, those whose processes have not swapped back.
        """
        model, state = reaching.wave.model, reaching.state
        if not (reaching.wave.back and reaching.transition.refresh == "swap"):
            return ()
        regions = {region for _, region, _ in state.slots} - reaching.facts.lost
        states, _ = observe(self._infrastructure, regions, [model])
        return not_gone_back(model, state, states)

    def _write_progress(self, reaching: WaveContext) -> None:
        """Record the progress.

        Raises Unavailable if a region was lost or restored since: it must receive this transition's result.
        """
        wave, record, last = reaching.wave, reaching.record, reaching.is_last
        with self._store.begin(wave.model) as repository:
            still_ours(repository)
            same(repository, reaching.facts.lost)
            if wave.back:
                if not last:  # a run that takes over continues from the wave before, not from the reverted one
                    repository.advance_transition(record.id, waves_done=min(record.waves_done, max(wave.index - 1, 0)))
                    return
                message = f"{wave.reason}: {wave.message}"
                repository.advance_transition(record.id, state=TransitionState.ROLLED_BACK, message=message)
                return
            state = TransitionState.DONE if last else TransitionState.RUNNING
            done = max(wave.index + 1, record.waves_done)
            repository.advance_transition(record.id, waves_done=done, state=state, rests=not last)

    def _begin_to_move(self, wave: WaveInput) -> None:
        """Record before the first call to a region that the reconciler leaves the model alone from now on."""
        with self._store.begin(wave.model) as repository:
            still_ours(repository)
            _rest(repository, wave, rests=False)

    def _note(self, wave: WaveInput, condition: ConditionType, result: WaveResult, *, rests: bool = False) -> None:
        """Record a condition, and an event for each wave. `rests`: all that the step had to change is changed."""
        where = "on the way back" if wave.back else f"wave {wave.index + 1}"
        reason = result.reason
        message = f"generation {wave.generation}, {where}" + (f": {result.message}" if result.message else "")
        with self._store.begin(wave.model) as repository:
            still_ours(repository)
            if rests:
                _rest(repository, wave, rests=True)
            repository.set_condition(wave.model, condition, "True" if result.ok else "False", reason, message)
            cause = None if result.ok or wave.back else _cause(wave, result, STEPS[condition])
            repository.add_event(wave.model, condition.value, message, detail=cause.detail if cause else None)

    def _note_gate(self, wave: WaveInput, result: WaveResult) -> None:
        """Record an event that names the answers that failed the gate."""
        with self._store.begin(wave.model) as repository:
            message = f"generation {wave.generation}, wave {wave.index + 1}: {result.message}"
            repository.add_event(wave.model, result.reason.value, message, detail=_cause(wave, result, GATE).detail)


def _rest(repository: Repository, wave: WaveInput, *, rests: bool) -> None:
    """Note whether regions hold now what the store has. Never during a revert, which waits for regions only."""
    repository.advance_transition(wave.transition_id, rests=rests and not wave.back)


def _build_gate_input(repository: Repository, wave: WaveInput, reaching: WaveContext) -> GateInput:
    """Return the gate's inputs for a wave. A rollback is judged by errors only: its generation has served before."""
    rollout = repository.model(wave.model).in_force.spec.rollout
    window = wave.window or GateWindow()
    stored = {region: table.shares for region, table in reaching.facts.tables.items()}
    answering = {share.generation for shares in reaching.state.shares.values() for share in shares}
    asked = GateInput(
        gate=rollout.gate,
        max_error_rate=rollout.max_error_rate,
        early=wave.early,
        wait_left=min(rollout.gate.wait_seconds, wave.deadline_seconds) - wave.watched_seconds,
        generation=wave.generation,
        former=window.former if window.former in answering else None,
        shares=(reaching.state.shares, stored),
    )
    return errors_only(asked) if repository.change(reaching.record.change_id).kind in AT_ONCE else asked


def _rerun_refusal(record: TransitionRecord) -> str | None:
    """Reason why a reverted transition is not executed again: its origin state may be gone."""
    return "its transition was reverted before" if record.state is TransitionState.ROLLED_BACK else None


def _mark_rolling_out(repository: Repository, stage: StageInput) -> None:
    if repository.generation(stage.model, stage.generation).state is not GenerationState.SERVING:
        repository.set_generation_state(stage.model, stage.generation, GenerationState.ROLLING_OUT)


def _check_reached(facts: DesiredFacts, shares: Mapping[str, Sequence[RouteShare]], silent: Iterable[str]) -> None:
    """Raise RegionUnreachable if a gateway that has to move does not answer.

    One that only refuses its users may be away.
    """
    for region in silent:
        table = facts.tables.get(region)
        if region in shares and tuple(shares[region]) != (table.shares if table else ()):
            msg = f"region {region!r} can't be reached, so no gateway moves on yet"
            raise RegionUnreachable(msg)


def _check_ready(wave: WaveInput, state: ModelWaveState, states: Mapping[str, RegionState]) -> None:
    """Raise Unavailable if a reachable region lacks ready replicas of the generation for the wave's traffic."""
    counts = {
        held: count for held, count in state.counts.items() if held[1] == wave.generation and held[0][1] in states
    }
    lacking = missing_replicas(wave.model, replace(state, counts=counts), states)
    if lacking:
        msg = f"ready no more: {'; '.join(lacking)}"
        raise Unavailable(msg)


def _cause(wave: WaveInput, result: WaveResult, step: str) -> Cause:
    """Build the cause of a failed wave. A transition has the id of its change."""
    place = result.place.model_copy(update={"step": step})
    return Cause(change=wave.transition_id, reason=result.reason, message=result.message, place=place)


def _note_cause(repository: Repository, wave: WaveInput) -> None:
    """Record the cause of a revert if no activity recorded it: the one that failed had no answer at all."""
    regions = repository.fleet().spec.regions
    cause = Cause(change=wave.transition_id, reason=wave.reason, message=wave.message)
    note_first(repository, wave.model, cause, regions=regions)
