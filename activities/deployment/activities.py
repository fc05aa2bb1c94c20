"""The end of a change: serving generation, conditions and plan; and the retirement of a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from temporalio import activity

from activities.deployment.repetition import record_again, replan_shortage, replan_stopped_move
from activities.planning.adoption import places_other_parts, settle
from activities.planning.drift import record_repair
from activities.runtime.deadline import beat
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.fence import fencing, still_ours
from activities.runtime.single_calls import OF_ONE, describe, name_failed
from activities.state.drained_fleet import DrainedFleet, same
from activities.state.shadow_removal import ShadowRemoval
from ipnext.errors import Conflict, IPnextError, RegionUnreachable, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import Done, RecordInput, StageInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.store.operations.change_end import ROLLS_OUT, end_change
from ipnext.store.operations.quota_claims import lower_claims
from ipnext.store.operations.repetition import pend_again
from ipnext.store.store import Store

LASTING_ATTEMPTS = 30
"""A Conflict that lasts for this many attempts, five minutes by the step's retries, is permanent."""

_BRINGS_PARTS = ROLLS_OUT | {ChangeKind.ROLLBACK}
"""Kinds of changes after which a model may have other parts than before."""


class DeploymentActivities:
    """Deployment activities, on the store and the infrastructure."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._shadows = ShadowRemoval(store, infrastructure)

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.finish_change, self.withdraw_model, self.release_model)

    @activity.defn(name="finish_change", no_thread_cancel_exception=True)
    def finish_change(self, record: RecordInput) -> Done:
        """Record the end of a change: generation, model, conditions, plan and change in one unit of work.

        If the change failed, the plan in force is set to the observed state; also if it succeeded, and a replan placed
        parts that only the former generation has. A change that is final stays. One that failed because of a lost
        region is recorded again, as a new change. The change's transition is closed with it,
        so that the next one may begin: no run of it may be in progress any more. A Conflict that lasts ends the change,
        with the Conflict as its message. A shadow that it keeps ends first.
        """
        self._shadows.remove(record.model, record.change_id)
        try:
            return self._finish(record)
        except Conflict as error:
            if activity.info().attempt < LASTING_ATTEMPTS:
                raise
            return self._finish_in_words(record, error)

    def _finish(self, record: RecordInput) -> Done:
        with self._store.begin(record.model) as repository:
            change = repository.change(record.change_id)
            if change.state.final:
                return Done(note=f"was {change.state} already")
            again = record_again(repository, change, record.result)
            if again is not None:
                record = _name_repetition(record, again)
            former = repository.model(record.model).former
            end_change(repository, record)
            short = False
            if _follows_what_runs(change.kind, record.result.state):
                found = former.placement if former and former.change_id == change.id else None
                wishes = found.wishes if found else None
                short = settle(repository, record.model, change_id=record.change_id, wishes=wishes)
            elif change.kind in _BRINGS_PARTS and places_other_parts(repository, record.model):
                short = settle(repository, record.model, change_id=record.change_id)
            if short:
                replan_shortage(repository, change, record.result)
            if again is not None:
                pend_again(repository, again)
            replan_stopped_move(repository, change)
            lower_claims(repository, record.model)
            record_repair(repository, record.model)
        return Done(note=record.result.message)

    def _finish_in_words(self, record: RecordInput, error: Conflict) -> Done:
        """End the change alone.

        Its result is not recorded, so that the reconciler restores the former serving generation. Raises IPnextError,
        which is not retried, if that conflicts too.
        """
        result = record.result
        failed = result.state is ChangeState.DONE
        state = ChangeState.ROLLED_BACK if failed else result.state
        reason = Reason.INTERNAL_ERROR if failed else result.reason
        message = f"it ended as {result.state}, which can't be recorded: {error.message}"
        try:
            with self._store.begin(record.model) as repository:
                change = repository.change(record.change_id)
                if change.state.final:
                    return Done(note=f"was {change.state} already")
                repository.end_force(record.model, change_id=change.id, done=False)
                repository.close_transition(change.id, done=False, message=message)
                repository.update_change(change.id, state=state, reason=reason, message=message)
                repository.add_event(record.model, "NotRecorded", f"{change.kind} {change.id}: {message}")
        except Conflict as again:
            msg = f"{message}; nor can its failure: {again.message}"
            raise IPnextError(msg) from again
        return Done(note=message)

    @activity.defn(name="withdraw_model", no_thread_cancel_exception=True)
    @of_a_step
    def withdraw_model(self, stage: StageInput) -> Done:
        """Remove a model from every gateway.

        Raises Unavailable, naming the regions, if any fails: the others are done by then. Also if a region was lost or
        restored meanwhile: a restored one received the model's state from the store.
        """
        with self._store.read() as repository:
            repository.check_only_mover(stage.model, stage.change_id)
        with fencing(self._store, stage.change_id):
            self._note_withdrawal(stage)
            return self._withdraw(stage)

    def _note_withdrawal(self, stage: StageInput) -> None:
        """Record that the model does not serve, before the first gateway forgets it.

        The end of the change judges it again.
        """
        message = f"{stage.kind} {stage.change_id} takes the model out of its gateways"
        with self._store.begin(stage.model) as repository:
            still_ours(repository)
            repository.set_condition(stage.model, ConditionType.SERVING, "False", Reason.PROGRESSING, message)

    def _withdraw(self, stage: StageInput) -> Done:
        regions, lost = self._regions(stage.model), self._lost()
        failed = dict[str, Exception]()
        for region in regions:
            error = None if region in lost else self._call_region(self._infrastructure.unroute, stage.model, region)
            if error is not None:
                failed[region] = error
        _raise_failed(failed)
        with self._store.begin(stage.model) as repository:
            still_ours(repository)
            same(repository, lost)  # a restored one was made to answer
            repository.delete_routes(stage.model)
        return Done(note=f"out of {len(regions)} gateways")

    @activity.defn(name="release_model", no_thread_cancel_exception=True)
    @of_a_step
    def release_model(self, stage: StageInput) -> Done:
        """Drain and end every replica set of a model.

        Raises Unavailable, naming the regions, if any fails, or was lost or restored meanwhile: the others are done by
        then.
        """
        with fencing(self._store, stage.change_id):
            return self._release(stage)

    def _release(self, stage: StageInput) -> Done:
        with self._store.read() as repository:
            deployments = repository.deployments(stage.model)
        failed, lost = dict[str, Exception](), self._lost()
        for deployment in deployments:
            beat(f"ending {deployment.key}")
            region = deployment.key.region
            error = None if region in lost else self._call_region(self._infrastructure.delete, deployment.key)
            if error is not None:
                failed[region] = error
                continue
            with self._store.begin(stage.model) as repository:
                still_ours(repository)
                same(repository, lost)
                repository.delete_deployment(deployment.key)
        _raise_failed(failed)
        return Done(note=f"{len(deployments)} replica sets ended")

    def _lost(self) -> frozenset[str]:
        """Return lost regions: once they are restored they receive their desired state, and end all else."""
        with self._store.read() as repository:
            return DrainedFleet.of(repository.drains()).lost

    def _regions(self, model: str) -> tuple[str, ...]:
        with self._store.read() as repository:
            return tuple(table.region for table in repository.routes(model))

    def _call_region(self, call: Callable[..., None], *arguments: object) -> Exception | None:
        """Call a region; return its error, if any."""
        still_ours()
        try:
            call(*arguments)
        except OF_ONE as error:
            return error
        return None


def _name_repetition(record: RecordInput, again: Change) -> RecordInput:
    """Name the change that repeats this one in its message."""
    message = f"{record.result.message}; it is carried out again on the regions that are left as change {again.id}"
    return record.model_copy(update={"result": record.result.model_copy(update={"message": message})})


def _follows_what_runs(kind: ChangeKind, ended: ChangeState) -> bool:
    """Check whether the plan in force is set to the observed state.

    It is not after a failed repair, as that state is the fault.
    """
    return kind is ChangeKind.RETIRE or (ended is not ChangeState.DONE and kind is not ChangeKind.REPAIR)


def _raise_failed(failed: Mapping[str, Exception]) -> None:
    if not failed:
        return
    silent = all(isinstance(error, RegionUnreachable) for error in failed.values())
    told = name_failed({f"region {region!r}": describe(error) for region, error in failed.items()})
    msg = f"{told}; trying again"
    raise RegionUnreachable(msg) if silent else Unavailable(msg)
