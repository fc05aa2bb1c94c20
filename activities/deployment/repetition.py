"""Repeats changes that failed because a region was lost, and requests plans.

The changes were reverted or refused; they are repeated on the remaining regions. The fleet is planned again after a
move that a rollback stopped, and after a change that left less capacity than traffic.

Called in the unit of work that ends a change. The next change plans without the lost region, so it ends by the same
reason only if another one is lost.
"""

from itertools import takewhile

from activities.planning.drift import pause_after
from activities.state.wave_state import peak
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
from ipnext.model.lifecycle.status import Reason
from ipnext.store.operations.repetition import is_replaced, record_repetition
from ipnext.store.repository import Repository

REPEATED = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.ROLLBACK})
"""Kinds of changes that users request. Moves are requested by the replan of the loss, repairs by the remaining
drift."""

BY_A_LOSS = frozenset(
    {
        Reason.REGION_UNREACHABLE,
        Reason.UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.TRANSITION_REFUSED,
    }
)
"""Reasons of changes that fail because of a lost region. Any other one is a fault of the change itself."""

COUNTED = 32
"""Newest changes of a model among which moves that failed in a row are counted: the pause is at its longest by then."""


def record_again(repository: Repository, change: Change, result: LifecycleResult) -> Change | None:
    """Record a change of the same kind and generation if a region was lost during this one, which is about to end.

    None if it succeeded, if it ended for another reason (no approval in time), or if a newer change supersedes it.
    """
    failed = result.state in {ChangeState.ROLLED_BACK, ChangeState.REFUSED}
    if change.kind not in REPEATED or not failed or result.reason not in BY_A_LOSS or result.unanswered:
        return None
    if repository.model(change.model).retired or is_replaced(repository, change):
        return None
    if not repository.was_lost_since(change.id, regions_of(repository, change)):
        return None
    return record_repetition(repository, change)


def replan_stopped_move(repository: Repository, rollback: Change) -> None:
    """Record a replan if a rollback, which has ended, stopped the newest move of the model.

    The plan of that move is no longer in force. The rollback restores the running replicas and waits for no place of
    the move. The next plan decides what moves then.
    """
    if rollback.kind is not ChangeKind.ROLLBACK or repository.plan_in_force_id() is None:
        return
    move = repository.find_stopped_move(rollback.model)
    if move is not None:
        repository.add_shortage_replan(move.model, move.sequence)


def replan_shortage(repository: Repository, change: Change, result: LifecycleResult) -> None:
    """Record a replan: a change ended in this unit, and the replicas that it left carry less than they receive.

    After a move the replan waits, longer with each one that failed in a row, or two moves could follow each other
    without end. None after a move that was stopped on request: the change that stopped it decides, or its user.
    """
    if change.kind is not ChangeKind.MOVE:
        repository.add_shortage_replan(change.model, change.sequence)
    elif result.stopped_by is None and result.reason is not Reason.ABORTED:
        pause = pause_after(max(1, _count_failed_moves(repository, change.model)))
        repository.add_shortage_replan(change.model, change.sequence, delay_seconds=pause.total_seconds())


def _count_failed_moves(repository: Repository, model: str) -> int:
    """Count the newest moves that failed in a row. Those that a newer plan superseded don't count."""
    changes = repository.changes(model, limit=COUNTED)
    moves = (move for move in changes if move.kind is ChangeKind.MOVE and move.state.final)
    tried = (move.state for move in moves if move.state is not ChangeState.SUPERSEDED)
    return sum(1 for _ in takewhile(lambda state: state is not ChangeState.DONE, tried))


def regions_of(repository: Repository, change: Change) -> frozenset[str]:
    """Return regions that a change targets or passes through.

    They are those of its transition, else of the model's placement.
    """
    record = repository.find_transition(change.id)
    if record is not None:
        ends = {row.region for row in record.transition.to.replicas}
        return frozenset(ends | {region for _, region, _ in peak(record.transition, change.model)})
    placed = repository.placement(change.model)
    return frozenset(row.region for row in placed.replicas) if placed else frozenset()
