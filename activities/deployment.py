"""The end of a change: what serves, what the conditions say, what the plan says; and taking a model out of service."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from temporalio import activity

from activities.adoption import settle
from activities.drained import Drained
from activities.holding import end_hold
from activities.pulse import still_ours
from activities.waiting import beat
from ipnext.errors import RegionUnreachable, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.lifecycle import Change, ChangeKind, ChangeState, Done, RecordInput, StageInput
from ipnext.model.registry import Generation, GenerationState
from ipnext.model.status import ConditionType, Reason
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository
from ipnext.store.session import Store

_ENDED = {
    ChangeState.REFUSED: GenerationState.REFUSED,
    ChangeState.ROLLED_BACK: GenerationState.FAILED,
    ChangeState.SUPERSEDED: GenerationState.SUPERSEDED,
}


class DeploymentActivities:
    """Needs the store and the infrastructure."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (self.finish_change, self.withdraw_model, self.release_model)

    @activity.defn(name="finish_change", no_thread_cancel_exception=True)
    def finish_change(self, record: RecordInput) -> Done:
        """Write down how a change ended: generation, model, conditions, plan and change in one unit of work.

        The plan in force follows what really runs where the change did not come through. A change that is final stays.
        """
        with self._store.begin(record.model) as repository:
            change = repository.change(record.change_id)
            if change.state.final:
                return Done(note=f"was {change.state} already")
            if record.result.state is ChangeState.DONE:
                _write_success(repository, change, record)
            else:
                _write_failure(repository, change, record)
            if record.result.state is not ChangeState.DONE or change.kind is ChangeKind.RETIRE:
                settle(repository, record.model, change_id=record.change_id)
            result = record.result
            repository.update_change(
                change.id, state=result.state, reason=result.reason, message=result.message, run_id=record.run_id
            )
            end_hold(repository, record.model)
            _write_ready(repository, repository.model(record.model))
            text = f"{change.kind} {result.state}" + (f": {result.message}" if result.message else "")
            repository.add_event(record.model, _event_kind(result.state), text, run_id=record.run_id)
        return Done(note=result.message)

    @activity.defn(name="withdraw_model", no_thread_cancel_exception=True)
    def withdraw_model(self, stage: StageInput) -> Done:
        """Take a model out of every gateway. Unavailable where one can't be reached: the others are done by then."""
        regions, lost = self._regions(stage.model), self._lost()
        silent = [
            region
            for region in regions
            if region not in lost and not self._tried(self._infrastructure.unroute, stage.model, region)
        ]
        _raise_silent(silent)
        with self._store.begin(stage.model) as repository:
            repository.delete_routes(stage.model)
        return Done(note=f"out of {len(regions)} gateways")

    @activity.defn(name="release_model", no_thread_cancel_exception=True)
    def release_model(self, stage: StageInput) -> Done:
        """Drain and end every replica set of a model. Unavailable where a region can't be reached."""
        with self._store.read() as repository:
            deployments = repository.deployments(stage.model)
        silent, lost = [], self._lost()
        for deployment in deployments:
            beat(f"ending {deployment.key}")
            gone = deployment.key.region in lost or self._tried(self._infrastructure.delete, deployment.key)
            if not gone:
                silent.append(deployment.key.region)
                continue
            with self._store.begin(stage.model) as repository:
                still_ours()
                repository.delete_deployment(deployment.key)
        _raise_silent(silent)
        return Done(note=f"{len(deployments)} replica sets ended")

    def _lost(self) -> frozenset[str]:
        """Regions that are gone: once they are back they are told what the store wants, and end all else."""
        with self._store.read() as repository:
            return Drained.of(repository.drains()).lost

    def _regions(self, model: str) -> tuple[str, ...]:
        with self._store.read() as repository:
            return tuple(table.region for table in repository.routes(model))

    def _tried(self, call: Callable[..., None], *arguments: object) -> bool:
        still_ours()
        try:
            call(*arguments)
        except Unavailable:
            return False
        return True


@dataclass(frozen=True)
class Readiness:
    """What the condition `Ready` says."""

    status: Literal["True", "False"]
    reason: Reason
    message: str


def readiness(record: ModelRecord, wanted: Generation | None, changes: Sequence[Change]) -> Readiness:
    """`Ready` is true only while the newest wanted state serves: the target generation, and the newest manifest.

    `wanted` is the target generation, `changes` are the model's, newest first. Moves don't count: they bring no other state.
    """
    serving = f"generation {record.serving_generation} serves" if record.serving_generation else "nothing serves"
    if record.retired or wanted is None:
        why = "the model is retired" if record.retired else "no snapshots are published"
        return Readiness("False", Reason.NOT_PUBLISHED, why)
    own = [change for change in changes if change.kind is not ChangeKind.MOVE]
    waiting = [change for change in own if change.state in {ChangeState.RECORDED, ChangeState.QUEUED}]
    if waiting:
        return Readiness("False", Reason.PENDING, f"{waiting[0].kind} {waiting[0].id} waits; {serving}")
    if record.serving_generation != wanted.number:
        reason = Reason(wanted.reason) if wanted.reason in set(Reason) else Reason.PROGRESSING
        told = f": {wanted.message}" if wanted.message else ""
        return Readiness("False", reason, f"generation {wanted.number} does not serve{told}; {serving}")
    if record.observed_generation < record.generation:
        return _old_manifest(record, own[0] if own else None)
    return Readiness("True", Reason.SERVING, serving)


def _old_manifest(record: ModelRecord, last: Change | None) -> Readiness:
    """The wanted generation serves, but by an older manifest; `last` may say why."""
    reached = f"revision {record.observed_generation} of the manifest serves, {record.generation} is wanted"
    if last is None or last.reason is None or last.state is ChangeState.DONE:
        return Readiness("False", Reason.PENDING, reached)
    return Readiness("False", last.reason, f"{reached}: {last.message}")


def _write_success(repository: Repository, change: Change, record: RecordInput) -> None:
    model = record.model
    if change.kind is ChangeKind.RETIRE:
        for number in repository.generation_numbers(model, GenerationState.SERVING, GenerationState.WARM):
            repository.set_generation_state(model, number, GenerationState.RETIRED)
        repository.update_model(model, serving_generation=None, target_generation=None, retired=True)
        return
    if record.generation is None:
        return
    repository.set_generation_state(model, record.generation, GenerationState.SERVING)
    repository.update_model(model, serving_generation=record.generation)
    if change.kind is not ChangeKind.MOVE:
        repository.update_model(model, observed_generation=record.revision)
    _cool_down(repository, model)


def _write_failure(repository: Repository, change: Change, record: RecordInput) -> None:
    model, number, result = record.model, record.generation, record.result
    if number is None:
        return
    generation = repository.generation(model, number)
    if repository.model(model).serving_generation == number:
        return
    state = _ENDED.get(result.state, GenerationState.FAILED)
    if generation.serving_at is not None:
        held = any(number in deployment.generations for deployment in repository.deployments(model))
        state = GenerationState.WARM if held else GenerationState.RETIRED
    if change.kind in {ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.APPLY}:
        repository.set_generation_state(model, number, state, reason=result.reason, message=result.message)


def _cool_down(repository: Repository, model: str) -> None:
    """Former generations that no replica holds any more are not warm."""
    held = {generation for deployment in repository.deployments(model) for generation in deployment.generations}
    for number in repository.generation_numbers(model, GenerationState.WARM):
        if number not in held:
            repository.set_generation_state(model, number, GenerationState.RETIRED)


def _write_ready(repository: Repository, record: ModelRecord) -> None:
    wanted = repository.generation(record.name, record.target_generation) if record.target_generation else None
    ready = readiness(record, wanted, repository.changes(record.name))
    repository.set_condition(record.name, ConditionType.READY, ready.status, ready.reason, ready.message)


def _event_kind(state: ChangeState) -> str:
    return "".join(word.capitalize() for word in state.value.split("_"))


def _raise_silent(regions: Sequence[str]) -> None:
    if regions:
        msg = f"region {regions[0]!r} can't be reached; trying again until it can"
        raise RegionUnreachable(msg)
