"""The end of a change as one write: generation, model, conditions, change and event.

Called by the activity that finishes a change, and by the outbox for a change that the workflow engine refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.regions.stray_users import describe_astray
from ipnext.model.lifecycle.regions.unserved_regions import (
    binding_reason,
    routed_before,
    unserved_message,
    unserved_regions,
)
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.derived.layout import hosting_of
from ipnext.model.manifest.derived.part_tensors import graph_of_one
from ipnext.model.registry.registry import Generation, GenerationState
from ipnext.store.operations.quota_claims import lower_claims
from ipnext.store.operations.refused_routes import refuse_further_users, refuse_users
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})

BRINGS_NEW = ROLLS_OUT | {ChangeKind.ROLLBACK}
"""Kinds that bring another generation or another manifest."""

BRINGS_NOTHING_NEW = frozenset({ChangeKind.MOVE, ChangeKind.REPAIR})
"""Kinds that bring neither another generation nor another manifest."""

_ENDED = {
    ChangeState.REFUSED: GenerationState.REFUSED,
    ChangeState.ROLLED_BACK: GenerationState.FAILED,
    ChangeState.SUPERSEDED: GenerationState.SUPERSEDED,
}


def end_change(repository: Repository, record: RecordInput) -> None:
    """Write the end of a change that is not final yet. The caller settles the plan in force.

    If it did not succeed, the manifest that was in force before it is in force again. A hold of another change, which
    moves the model, stays: it may wait for an approval.

    Raises NotFound if the change, model or generation is unknown.
    """
    change, result = repository.change(record.change_id), record.result
    if result.state is ChangeState.DONE:
        _write_success(repository, change, record)
    else:
        _write_failure(repository, change, record)
    repository.end_force(record.model, change_id=change.id, done=result.state is ChangeState.DONE)
    repository.close_transition(change.id, done=result.state is ChangeState.DONE, message=result.message)
    repository.update_change(
        change.id,
        state=result.state,
        reason=result.reason,
        message=result.message,
        run_id=record.run_id or None,
        stopped_by=result.stopped_by,
    )
    if not repository.is_moved(record.model):
        end_hold(repository, record.model)
    write_ready(repository, repository.model(record.model))
    text = f"{change.kind} {result.state}" + (f": {result.message}" if result.message else "")
    repository.add_event(record.model, _event_kind(result.state), text, run_id=record.run_id or None)


def refuse_change(repository: Repository, change: Change, message: str) -> bool:
    """End a change that never began as REFUSED. False, and nothing is written, if it has begun or ended.

    A refused publish leaves its generation REFUSED, so that the same bytes can be published again.
    """
    if repository.change(change.id).state is not ChangeState.RECORDED:
        return False
    if change.kind is ChangeKind.PUBLISH:
        repository.update_model(change.model, target_generation=change.generation)
    result = LifecycleResult(
        state=ChangeState.REFUSED, generation=change.generation, reason=Reason.INTERNAL_ERROR, message=message
    )
    end_change(
        repository,
        RecordInput(
            model=change.model,
            change_id=change.id,
            kind=change.kind,
            generation=change.generation,
            result=result,
            run_id="",
            plan_id=change.plan_id,
        ),
    )
    lower_claims(repository, change.model)
    return True


def end_hold(repository: Repository, model: str) -> None:
    """Release the model's hold after the end of a change. A pause stays: it belongs to the model, not to the change."""
    held = block_reason(repository, model)
    if held not in {None, Reason.PAUSED}:
        release_hold(repository, model)


def end_pause(repository: Repository, model: str) -> None:
    """End the pause of a retired model."""
    repository.delete_pause(model)
    if block_reason(repository, model) is Reason.PAUSED:
        release_hold(repository, model)


def block_reason(repository: Repository, model: str) -> Reason | None:
    """Return the reason that blocks the model's changes now. NotFound if the model was never applied."""
    held = (
        c.reason for c in repository.conditions(model) if c.type is ConditionType.PROGRESSING and c.status == "False"
    )
    return next(held, None)


def release_hold(repository: Repository, model: str) -> None:
    """Record that nothing blocks the model's changes."""
    repository.set_condition(model, ConditionType.PROGRESSING, "True", Reason.SUCCEEDED)


@dataclass(frozen=True)
class ReadinessCondition:
    """Content of the condition `Serving` or `UpToDate`."""

    status: Literal["True", "False"]
    reason: Reason
    message: str


def judge_up_to_date(record: ModelRecord, wanted: Generation | None, changes: Sequence[Change]) -> ReadinessCondition:
    """Judge `UpToDate`.

    True while the newest desired state is routed to, the target generation and the newest manifest. `wanted` is the
    target generation, `changes` are the model's, newest first. Moves and repairs don't count: they bring no other
    state.
    """
    serving = f"generation {record.serving_generation} serves" if record.serving_generation else "nothing serves"
    own = [change for change in changes if change.kind not in BRINGS_NOTHING_NEW]
    if wanted is None:  # only a change that names a generation brings one
        own = [change for change in own if change.generation is not None]
    waits = None if record.retired else _judge_waiting(own, serving)
    if waits is not None:
        return waits
    if record.retired or wanted is None:
        return ReadinessCondition("False", Reason.NOT_PUBLISHED, _not_published(record))
    if record.serving_generation != wanted.number:
        reason = Reason(wanted.reason) if wanted.reason in set(Reason) else Reason.PROGRESSING
        told = f": {wanted.message}" if wanted.message else ""
        return ReadinessCondition("False", reason, f"generation {wanted.number} does not serve{told}; {serving}")
    if record.observed_generation < record.generation:
        return _judge_old_manifest(record, own)
    if under_way := next((change for change in own if change.kind in BRINGS_NEW and not change.state.final), None):
        told = f"{under_way.kind} {under_way.id} is under way; {serving}"
        return ReadinessCondition("False", Reason.PROGRESSING, told)
    newest = f"generation {wanted.number} is the newest, by revision {record.generation} of the manifest"
    return ReadinessCondition("True", Reason.SUCCEEDED, newest)


def _judge_waiting(own: Sequence[Change], serving: str) -> ReadinessCondition | None:
    """Judge a model with a change that waits for its turn or for a freeze; None without one."""
    waiting = [change for change in own if change.state in {ChangeState.RECORDED, ChangeState.QUEUED}]
    if waiting:
        return ReadinessCondition("False", Reason.PENDING, f"{waiting[0].kind} {waiting[0].id} waits; {serving}")
    frozen = next((change for change in own if not change.state.final and change.reason is Reason.FROZEN), None)
    if frozen is not None and frozen.kind in ROLLS_OUT:
        return ReadinessCondition("False", Reason.FROZEN, f"{frozen.kind} {frozen.id} is {frozen.message}; {serving}")
    return None


def judge_serving(
    record: ModelRecord, wanted: ReadinessCondition, unserved: Mapping[str, Sequence[str]]
) -> ReadinessCondition:
    """Judge `Serving`: true while a generation answers the users of every region that the manifest names.

    `wanted` is the judgement of `UpToDate`; its reason explains why nothing serves yet. `unserved` maps each users'
    region that nothing serves to the rules of the plan that cause it.
    """
    if record.retired or record.serving_generation is None:
        message = (
            _not_published(record) if wanted.reason is Reason.NOT_PUBLISHED else f"nothing serves: {wanted.message}"
        )
        return ReadinessCondition("False", wanted.reason, message)
    serves = f"generation {record.serving_generation} serves"
    for region, rules in unserved.items():
        return ReadinessCondition("False", binding_reason(rules), f"{unserved_message(region, rules)}; {serves}")
    return ReadinessCondition("True", Reason.SERVING, serves)


def _not_published(record: ModelRecord) -> str:
    return "the model is retired" if record.retired else "no snapshots are published"


def _judge_old_manifest(record: ModelRecord, own: Sequence[Change]) -> ReadinessCondition:
    """Judge a model whose desired generation serves, but by an older manifest.

    `Progressing` while one of its changes, newest first, is open. Else the reason is that of the newest change that
    could have brought the manifest; a rollback brings none, so it does not change the reason.
    """
    reached = f"revision {record.observed_generation} of the manifest serves, {record.generation} is wanted"
    if under_way := next((change for change in own if not change.state.final), None):
        told = f"{reached}: {under_way.kind} {under_way.id} is under way"
        return ReadinessCondition("False", Reason.PROGRESSING, told)
    last = next((change for change in own if change.kind in ROLLS_OUT), None)
    if last is None or last.reason is None or last.state is ChangeState.DONE:
        return ReadinessCondition("False", Reason.SUPERSEDED, f"{reached}: no change is open that brings it")
    return ReadinessCondition("False", last.reason, f"{reached}: {last.message}")


def _write_success(repository: Repository, change: Change, record: RecordInput) -> None:
    model = record.model
    if change.kind is ChangeKind.RETIRE:
        for number in repository.generation_numbers(model, GenerationState.SERVING, GenerationState.WARM):
            repository.set_generation_state(model, number, GenerationState.RETIRED)
        repository.update_model(model, serving_generation=None, target_generation=None, retired=True)
        end_pause(repository, model)
        return
    if record.generation is None:
        return
    if change.kind not in BRINGS_NOTHING_NEW:
        repository.set_generation_state(model, record.generation, GenerationState.SERVING)
        repository.update_model(model, serving_generation=record.generation)
        known = repository.model(model)
        if change.kind in ROLLS_OUT:
            _keep_graph(repository, known, record.generation)
        _keep_parts(repository, known, record.generation)
        revision = known.accepted.revision if known.accepted else record.revision
        if revision:
            repository.update_model(model, observed_generation=revision)
    _cool_down(repository, model)


def _keep_graph(repository: Repository, known: ModelRecord, number: int) -> None:
    """Keep the graph with the generation that serves by it now: a later manifest may have another one.

    A generation of several parts is served by the one part of a manifest without a graph.
    """
    spec, generation = known.in_force.spec, repository.generation(known.name, number)
    if generation.layout is not None:
        return
    graph, first = spec.wiring, spec.hosted_parts[0]
    if graph is None and len(generation.parts) > 1 and first.name in generation.parts:
        snapshot = repository.snapshot(known.name, first.name, generation.snapshots[first.name])
        graph = graph_of_one(first, snapshot.manifest)
    if graph is not None and {node.part for node in graph.nodes} <= set(generation.snapshots):
        repository.set_graph(known.name, number, graph)


def _keep_parts(repository: Repository, known: ModelRecord, number: int) -> None:
    """Keep the hosted parts with the generation that serves with them now: a later manifest may lack one."""
    manifest = repository.as_measured(known.in_force, number)
    repository.set_hosting(known.name, number, hosting_of(manifest, repository.generation(known.name, number)))


def _write_failure(repository: Repository, change: Change, record: RecordInput) -> None:
    model, number, result = record.model, record.generation, record.result
    if change.kind is ChangeKind.RETIRE:
        repository.reopen_versions(model)
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
    """Retire warm generations that no replica holds any more."""
    held = {generation for deployment in repository.deployments(model) for generation in deployment.generations}
    for number in repository.generation_numbers(model, GenerationState.WARM):
        if number not in held:
            repository.set_generation_state(model, number, GenerationState.RETIRED)


def write_ready(repository: Repository, record: ModelRecord) -> None:
    """Write both halves of `Ready`, and the message for users while none of the model's generations serves."""
    wanted = repository.generation(record.name, record.target_generation) if record.target_generation else None
    tables = repository.routes(record.name)
    newest = judge_up_to_date(record, wanted, repository.changes(record.name))
    if newest.status == "True" and (astray := _describe_astray(repository, record, tables)):
        newest = ReadinessCondition("False", Reason.PROGRESSING, astray)
    unserved = unserved_regions(record.manifest, tables)
    if record.observed_generation < record.generation:
        unserved = routed_before(unserved, tables)
    answers = judge_serving(record, newest, unserved)
    for condition, found in ((ConditionType.UP_TO_DATE, newest), (ConditionType.SERVING, answers)):
        repository.set_condition(record.name, condition, found.status, found.reason, found.message)
    refuse_users(repository, record, _why_nothing_serves(record, newest, record.target_generation))
    refuse_further_users(repository, record, newest.reason)


def note_waiting(repository: Repository, change: Change) -> None:
    """Write that a publish, apply or rollback waits, in the unit of work that recorded it.

    `UpToDate`, and so `Ready`, is false from the moment in which the change is acknowledged. Gateways refuse users whom
    only the newest manifest names. Moves, repairs, retirements, and changes that have begun leave the model as it is.
    """
    if change.kind not in BRINGS_NEW or change.state is not ChangeState.RECORDED:
        return
    record = repository.model(change.model)
    wanted = repository.generation(record.name, record.target_generation) if record.target_generation else None
    # before the first generation is a target, an older publish may wait
    newest = judge_up_to_date(record, wanted, (change,) if wanted else repository.changes(record.name))
    if newest.message not in {
        each.message for each in repository.conditions(record.name) if each.type is ConditionType.UP_TO_DATE
    }:
        repository.set_condition(record.name, ConditionType.UP_TO_DATE, newest.status, newest.reason, newest.message)
    if change.kind is not ChangeKind.ROLLBACK:
        number = change.generation or record.target_generation or repository.newest_generation(record.name)
        refuse_users(repository, record, _why_nothing_serves(record, newest, number))
    if change.kind is ChangeKind.APPLY:
        refuse_further_users(repository, record, newest.reason)


def judge_again(repository: Repository, model: str) -> None:
    """Judge `Ready` after anything but the end of a change: changes were superseded, a failover changed the routes.

    An open change judges it at its own end.
    """
    if not repository.open_kinds(model).keys() - BRINGS_NOTHING_NEW:
        write_ready(repository, repository.model(model))


def _describe_astray(repository: Repository, record: ModelRecord, tables: Sequence[RouteTable]) -> str:
    """Describe users who are sent to a generation that does not serve; empty if there are none.

    Tables of lost regions do not count.
    """
    serving = record.serving_generation
    if serving is None:
        return ""
    lost = {drain.region for drain in repository.drains() if drain.lost}
    astray = describe_astray((table for table in tables if table.region not in lost), serving)
    return "; ".join((*astray, f"generation {serving} serves")) if astray else ""


def _why_nothing_serves(record: ModelRecord, newest: ReadinessCondition, number: int | None) -> str:
    """Explain it to users, without messages of checks or hosts, which may name facts that users must not see."""
    if newest.reason is Reason.NOT_PUBLISHED:
        return _not_published(record)
    return f"generation {number} does not serve ({newest.reason})"


def _event_kind(state: ChangeState) -> str:
    return "".join(word.capitalize() for word in state.value.split("_"))
