"""The transition of one model: its waves are planned, then walked, capacity first and traffic after.

Each activity computes the state it has to reach from the stored transition and brings it about, so it may be run again
at any time. A wave's outcome is an answer (WaveResult), not an error; errors are for what a retry may heal.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.problems import (
    fleet_problem,
    model_as_served,
    model_problem,
    units_in_use,
    with_running_options,
    with_supply_left,
)
from activities.refreshing import Refresh, refresh_of
from activities.regions import (
    Failure,
    first_failure,
    gate_failure,
    missing_replicas,
    observe,
    traffic_of,
    traffic_since,
)
from activities.routing import Gateways
from activities.waiting import Deadline
from activities.wanted import Facts, read_facts, wanted_deployments, wanted_shares
from activities.waves import ModelState, Phase, peak, planned_state, running_state, state_at, state_back
from ipnext.errors import InvalidInput, NotFound, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import Deployment
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle import ChangeKind, StageInput, TransitionPlanned, WaveInput, WaveResult
from ipnext.model.manifest import ModelManifest, RolloutSpec
from ipnext.model.registry import GenerationState
from ipnext.model.rollout import FleetState, Transition, TransitionState, Wave
from ipnext.model.status import ConditionType, Reason
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository
from ipnext.store.session import Store
from planner.transition import StepPolicy, plan_transition


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
        the waves need: trying again later helps.
        """
        with self._store.begin() as repository:
            known = _find(repository, stage.change_id)
            record = known or self._planned(repository, stage)
            rollout = repository.model(stage.model).manifest.spec.rollout
            if known is None and record.transition.refused is None:
                _mark_rolling_out(repository, stage)
        return TransitionPlanned(
            transition_id=record.id,
            waves=len(record.transition.waves),
            refused=record.transition.refused,
            deadline_seconds=rollout.deadline_seconds,
        )

    @activity.defn(name="ensure_capacity", no_thread_cancel_exception=True)
    def ensure_capacity(self, wave: WaveInput) -> WaveResult:
        """Add the wave's replicas and wait until each generation has them ready, at most `deadline_seconds`.

        Ends at once where a replica cannot load the generation. Unreachable regions are asked again until the deadline.
        """
        deadline = Deadline(wave.deadline_seconds, pause=self._pause)
        with self._store.begin(wave.model) as repository:
            if not wave.back:
                repository.advance_transition(wave.transition_id, state=TransitionState.RUNNING)
            facts, state = _reach(repository, wave, "scaled_up")
            wanted = wanted_deployments(facts, state)
            for deployment in wanted:
                repository.put_deployment(deployment)
            needed = _reach(repository, wave, "released")[1] if wave.back else state
        result = self._until_ready(wave, needed, wanted, deadline)
        self._note(wave, ConditionType.CAPACITY_READY, result)
        return result

    @activity.defn(name="shift_traffic", no_thread_cancel_exception=True)
    def shift_traffic(self, wave: WaveInput) -> WaveResult:
        """Send the traffic by the wave's shares; on the way back, by the origin's. Returns once all gateways follow."""
        with self._store.read() as repository:
            facts, state = _reach(repository, wave, "routed")
            transition = repository.transition(wave.transition_id).transition
        deployments = tuple(facts.deployments.values())
        shares = wanted_shares(facts, state, deployments)
        states, _ = observe(self._infrastructure, shares)
        Gateways(self._store, self._infrastructure, facts).follow(shares, deployments)
        hold = 0.0 if wave.back else transition.waves[wave.index].hold_seconds
        baseline = traffic_of(wave.model, wave.generation, states.values())
        result = WaveResult(ok=True, hold_seconds=hold, baseline=baseline)
        self._note(wave, ConditionType.ROUTES_READY, result)
        return result

    @activity.defn(name="check_gate", no_thread_cancel_exception=True)
    def check_gate(self, wave: WaveInput) -> WaveResult:
        """Whether the target generation answers well enough since the wave's traffic moved, and still stands."""
        with self._store.read() as repository:
            rollout = repository.model(wave.model).manifest.spec.rollout
            _, state = _reach(repository, wave, "routed")
        regions = {region for _, region, _ in state.slots}
        states, silent = observe(self._infrastructure, regions)
        if silent:
            msg = f"region {silent[0]!r} can't be reached, so the gate knows too little"
            raise Unavailable(msg)
        counted = traffic_since(wave.baseline, traffic_of(wave.model, wave.generation, states.values()))
        failure = first_failure(wave.model, wave.generation, states.values())
        failure = failure or gate_failure(counted, max_error_rate=rollout.max_error_rate)
        if failure is None:
            return WaveResult(ok=True, message=f"{counted.requests} answers, {counted.errors} errors")
        return WaveResult(ok=False, reason=failure.reason, message=failure.message)

    @activity.defn(name="release_capacity", no_thread_cancel_exception=True)
    def release_capacity(self, wave: WaveInput) -> WaveResult:
        """Take away what the wave no longer needs: out of the routers first, then the replicas and snapshots.

        The last wave, and the way back, leave exactly the state they lead to; former generations stay loaded as far as
        the rollout's `keepWarm` says. Writes down how far the transition is.
        """
        with self._store.read() as repository:
            facts, state = _reach(repository, wave, "released")
            record = repository.transition(wave.transition_id)
        last = wave.back or wave.index + 1 == len(record.transition.waves)
        wanted = wanted_deployments(facts, state)
        gone = [d for d in _left_over(facts, wanted) if last or _known(record.transition, wave.model, d)]
        shares = wanted_shares(facts, state, wanted)
        if last:
            shares = {region: found for region, found in shares.items() if found or region in facts.tables}
        kept = wanted if last else (*wanted, *(d for d in _left_over(facts, wanted) if d not in gone))
        unreachable = self._shrink(facts, shares, kept, wanted, gone)
        if unreachable is not None:
            raise unreachable
        self._write_progress(wave, record, last=last)
        return WaveResult(ok=True)

    def _planned(self, repository: Repository, stage: StageInput) -> TransitionRecord:
        placed = repository.placement(stage.model)
        if placed is None:
            msg = f"no plan is in force that places {stage.model!r}; publish or apply it so that one is made"
            raise NotFound(msg)
        deployments, tables = repository.deployments(stage.model), repository.routes(stage.model)
        demanding = {item.region for item in repository.model(stage.model).manifest.spec.demand}
        origin = running_state(stage.model, deployments, tables, demanding=demanding)
        to = planned_state(stage.model, stage.generation, placed.state)
        transition = _plan_waves(repository, stage, origin, to)
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

    def _until_ready(
        self, wave: WaveInput, needed: ModelState, wanted: Sequence[Deployment], deadline: Deadline
    ) -> WaveResult:
        """Wait for the replicas of `needed`: on the way back the origin's alone, for the others may never get ready."""
        pending = list(wanted)
        while True:
            pending = self._apply(pending)
            states, silent = observe(self._infrastructure, {d.key.region for d in wanted})
            lacking = missing_replicas(wave.model, needed, states)
            failure = None if wave.back else first_failure(wave.model, wave.generation, states.values())
            if failure is None and not lacking and not pending:
                return WaveResult(ok=True, message=f"{sum(d.replicas for d in wanted)} replicas ready")
            if failure is None and deadline.passed:
                failure = _too_late(wave, lacking, silent)
            if failure is not None:
                return WaveResult(ok=False, reason=failure.reason, message=failure.message)
            deadline.wait("; ".join(lacking) or f"regions {', '.join(silent)} can't be reached")

    def _apply(self, deployments: Iterable[Deployment]) -> list[Deployment]:
        """Tell the infrastructure; those whose region can't be reached are returned."""
        untold = []
        for deployment in deployments:
            try:
                self._infrastructure.apply(deployment)
            except Unavailable:
                untold.append(deployment)
        return untold

    def _shrink(
        self,
        facts: Facts,
        shares: dict[str, Any],
        kept: Sequence[Deployment],
        wanted: Sequence[Deployment],
        gone: Sequence[Deployment],
    ) -> Unavailable | None:
        """Everywhere as far as it can be reached; the first region that can't is returned as an error."""
        unreachable: Unavailable | None = None
        try:
            Gateways(self._store, self._infrastructure, facts).follow(shares, kept)
        except Unavailable as error:
            unreachable = error
        for deployment in wanted:
            unreachable = self._release(facts.model, deployment, keep=True) or unreachable
        for deployment in gone:
            unreachable = self._release(facts.model, deployment, keep=False) or unreachable
        return unreachable

    def _release(self, model: str, deployment: Deployment, *, keep: bool) -> Unavailable | None:
        """The infrastructure first: what the store no longer names must be gone."""
        try:
            if keep:
                self._infrastructure.apply(deployment)
            else:
                self._infrastructure.delete(deployment.key)
        except Unavailable as error:
            return error
        with self._store.begin(model) as repository:
            if keep:
                repository.put_deployment(deployment)
            else:
                repository.delete_deployment(deployment.key)
        return None

    def _write_progress(self, wave: WaveInput, record: TransitionRecord, *, last: bool) -> None:
        with self._store.begin(wave.model) as repository:
            if wave.back:
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
            repository.add_event(wave.model, condition.value, message)


def step_policy(rollout: RolloutSpec, kind: ChangeKind, refresh: Refresh) -> StepPolicy:
    """The planner's view of a rollout.

    A rollback goes in one step and holds nothing: its generation has served before, and someone waits for it.
    """
    if kind is ChangeKind.ROLLBACK:
        return StepPolicy(canary=1.0, max_step=1.0, hold_seconds=0.0, refresh=refresh)
    return StepPolicy(
        canary=rollout.canary, max_step=rollout.max_step, hold_seconds=rollout.hold_seconds, refresh=refresh
    )


def _plan_waves(repository: Repository, stage: StageInput, origin: FleetState, to: FleetState) -> Transition:
    """Waves on the supply that no one else uses at this moment; at least one wave, so that settings are brought up."""
    model, manifest = stage.model, model_as_served(repository, stage.model, stage.generation)
    calls = {number: repository.generation(model, number).parts for number in _generations(origin, to)}
    refresh = refresh_of(repository, manifest, (origin, to))
    policy = step_policy(manifest.spec.rollout, stage.kind, refresh).model_copy(update={"calls": calls})
    fleet = repository.fleet().spec
    now = with_supply_left(fleet, units_in_use(repository, but=model))
    transition = _waves_on(repository, manifest, now, (origin, to), policy)
    if transition.refused:
        later = with_supply_left(fleet, repository.units_entitled(but=model))
        if _waves_on(repository, manifest, later, (origin, to), policy).refused is None:
            msg = f"waiting for supply that another model is about to free: {transition.refused}"
            raise Unavailable(msg)
    if not transition.waves and not transition.refused:
        return transition.model_copy(update={"waves": (Wave(gate="final"),)})
    return transition


def _generations(*states: FleetState) -> frozenset[int]:
    """All generations that the states name."""
    replicas = {row.generation for state in states for row in state.replicas}
    return frozenset(replicas | {share.generation for state in states for share in state.traffic})


def _waves_on(
    repository: Repository,
    manifest: ModelManifest,
    fleet: FleetSpec,
    ends: tuple[FleetState, FleetState],
    policy: StepPolicy,
) -> Transition:
    origin, to = ends
    problem = fleet_problem(
        fleet, [with_running_options(model_problem(manifest), repository.deployments(manifest.name))]
    )
    try:
        planned = plan_transition(problem, origin, to, {manifest.name: policy})
        return planned.model_copy(update={"refresh": policy.refresh})
    except InvalidInput as error:
        return Transition.model_validate({"from": origin, "to": to, "refused": error.message})


def _reach(repository: Repository, wave: WaveInput, phase: Phase) -> tuple[Facts, ModelState]:
    transition = repository.transition(wave.transition_id).transition
    find = state_back if wave.back else state_at
    return read_facts(repository, wave.model, wave.generation), find(transition, wave.model, wave.index, phase)


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


def _known(transition: Transition, model: str, deployment: Deployment) -> bool:
    """Whether the transition itself ever held this slot (others are left for the last wave)."""
    key = deployment.key
    return (key.part, key.region, key.hardware) in peak(transition, model)


def _too_late(wave: WaveInput, lacking: Sequence[str], silent: Sequence[str]) -> Failure:
    if silent:
        return Failure(Reason.REGION_UNREACHABLE, f"regions {', '.join(silent)} could not be reached in time")
    seconds = f"{wave.deadline_seconds:g} s"
    return Failure(Reason.DEADLINE_EXCEEDED, f"not ready within {seconds}: {'; '.join(lacking)}")
