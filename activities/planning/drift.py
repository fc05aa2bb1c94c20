"""Models with users or replicas on a generation that does not serve, and the repairs recorded for them.

A change that ends with an incomplete revert leaves such a model, and so does a run that was terminated. Called in the
unit of work that ends a change, and by the reconciler for drift of other origin.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from activities.planning.adoption import settle
from activities.state.drained_fleet import DrainedFleet
from ipnext import names
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.stray_users import describe_astray
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import Generation
from ipnext.store.operations.change_end import write_ready
from ipnext.store.repository import Repository

PASSES_PAUSE = frozenset({ChangeKind.ROLLBACK, ChangeKind.RETIRE, ChangeKind.REPAIR})
"""Kinds of changes that run although the model is paused."""

FIRST_PAUSE = timedelta(seconds=15)
"""After a repair or a move that failed; each further failure in a row doubles it."""

LONGEST_PAUSE = timedelta(minutes=10)

WAITS_AFTER = timedelta(minutes=1)
"""A change without planned waves this long after it was recorded waits, as for supply: a repair does not wait for
it."""

LOOKED_AT = 8
"""Newest changes of a model that are read to count repairs which failed in a row: the pause is at its longest by
then."""


def drift_of(repository: Repository, model: str) -> str:
    """Describe the drift of a model to a generation that does not serve; empty if there is none.

    NotFound for an unknown model. Generations that served before and stay loaded are no drift, nor is anything that
    lies in a lost region: that is judged once the region is restored.
    """
    record = repository.model(model)
    serving = record.serving_generation
    if record.retired or serving is None:
        return ""
    lost = DrainedFleet.of(repository.drains()).lost
    tables = [table for table in repository.routes(model) if table.region not in lost]
    deployments = [found for found in repository.deployments(model) if found.key.region not in lost]
    loaded = {number for found in deployments for number in (*found.clients_generations, *found.own)}
    told = [*describe_astray(tables, serving)]
    if loaded - {serving}:  # of most models nothing more is read
        served = repository.have_served(model, loaded)
        told += _find_leftovers(deployments, repository.generation(model, serving), served)
    return f"{'; '.join(told)}; generation {serving} serves" if told else ""


def record_repair(repository: Repository, model: str, *, now: datetime | None = None) -> Change | None:
    """Record a repair of a model that drifted, in the caller's unit of work. None if it did not, or it is too early.

    Not while a change moves the model, or is about to bring it to one generation. A change that waits, for supply, for
    a freeze or for the end of a pause, may wait for days: a repair passes it. Nor while the plan in force places the
    model in a lost region: the replan that the loss triggers brings a plan without it, and until then a repair would be
    refused.
    """
    changes, now = repository.changes(model, limit=LOOKED_AT), now or datetime.now(UTC)
    if not changes or _is_left_to_another(repository, model, now) or _pauses(changes, now):
        return None
    why = drift_of(repository, model)
    if not why or _waits_for_plan(repository, model):
        return None
    change_id = names.repair_id(model, changes[0].sequence + 1)
    repair = repository.add_change(model, ChangeKind.REPAIR, change_id=change_id)
    repository.add_event(model, "RepairRecorded", why)
    return repair


def withdraw_unserved(repository: Repository, model: str) -> bool:
    """Delete the routes and replicas of a model without a serving generation, in the caller's unit of work.

    A first publish that was not reverted everywhere leaves them; there is no generation to repair to. Regions remove
    them in the same pass, or when they are restored. Returns False if the model has an open change, a serving
    generation, or nothing left.
    """
    if model not in repository.models_unserved():
        return False
    deployments = repository.deployments(model)
    repository.delete_routes(model)
    for deployment in deployments:
        repository.delete_deployment(deployment.key)
    newest = repository.changes(model, limit=1)
    if newest:
        settle(repository, model, change_id=newest[0].id)
    repository.add_event(
        model, "Withdrawn", f"no generation serves: {len(deployments)} replica sets and all routes are removed"
    )
    write_ready(repository, repository.model(model))
    return True


def pause_after(failures: int) -> timedelta:
    """Return how long nothing is tried again after failures in a row, at least one."""
    pause: timedelta = FIRST_PAUSE * 2 ** (failures - 1)
    return min(LONGEST_PAUSE, pause)


def _is_left_to_another(repository: Repository, model: str, now: datetime) -> bool:
    """Check whether an open change moves the model, or is about to: a repair before it could delay it.

    False if it waits for a freeze, may wait for the end of a pause, or has planned no waves for long.
    """
    if repository.is_moved(model):
        return True
    kinds = repository.open_kinds(model).keys()
    if not kinds:
        return False
    changes = repository.open_changes(model)
    frozen = {change.kind for change in changes if change.reason is Reason.FROZEN}
    waits = bool(frozen) or repository.pause(model) is not None
    waits = waits or any(change.created_at <= now - WAITS_AFTER for change in changes)
    return not waits or not (kinds - (frozen & {ChangeKind.RETIRE})).isdisjoint(PASSES_PAUSE)


def _waits_for_plan(repository: Repository, model: str) -> bool:
    """Check whether the plan in force places the model in a lost region."""
    placed = repository.placement(model)
    lost = DrainedFleet.of(repository.drains()).lost
    return placed is not None and any(row.region in lost and row.count for row in placed.replicas)


def _pauses(changes: Iterable[Change], now: datetime) -> bool:
    """Check whether the last repairs failed too recently to try again.

    `changes`: newest first; those that are open don't count.
    """
    failed = 0
    newest: datetime | None = None
    for change in (found for found in changes if found.state.final):
        if change.kind is not ChangeKind.REPAIR or change.state is ChangeState.DONE:
            break
        newest = newest or change.finished_at
        failed += 1
    return newest is not None and now < newest + pause_after(failed)


def _find_leftovers(deployments: Iterable[Deployment], serving: Generation, served: frozenset[int]) -> Iterable[str]:
    """Yield replicas of a generation that does not serve. A shadow is none: its change ends it.

    They are in dedicated processes, or loaded though it never served, or of a part that the serving one lacks.
    """
    for found in deployments:
        others = found.clients_generations - {serving.number}
        left = {number for number, count in found.own.items() if count and number != serving.number}
        left |= others if found.key.part not in serving.parts else others - served
        if found.clients_replicas and left:
            yield f"{found.key.part} in {found.key.region} holds generation {', '.join(map(str, sorted(left)))}"
