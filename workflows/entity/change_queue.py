"""Queue of a model's changes: which one runs next, and which ones a newer change supersedes. Pure functions."""

from collections.abc import Collection
from typing import NamedTuple

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.change import ChangeKind, QueuedChange

_OVERTAKES = {
    ChangeKind.PUBLISH: frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY}),
    ChangeKind.ROLLBACK: frozenset({ChangeKind.PUBLISH, ChangeKind.ROLLBACK}),
    ChangeKind.APPLY: frozenset({ChangeKind.APPLY}),
    ChangeKind.MOVE: frozenset({ChangeKind.MOVE}),
    ChangeKind.RETIRE: frozenset(ChangeKind) - {ChangeKind.RETIRE},
    ChangeKind.REPAIR: frozenset({ChangeKind.REPAIR}),
}
"""Kind -> the kinds of older waiting changes that it supersedes.

A publish plans by the newest manifest, so a waiting apply is part of it; a move is not, because the publish may be
refused.
"""


URGENT = frozenset({ChangeKind.ROLLBACK, ChangeKind.RETIRE})
"""Kinds that no pause blocks, and that preempt the running change."""

PASSES_PAUSE = URGENT | {ChangeKind.REPAIR}
"""Kinds that no pause blocks. A repair preempts nothing."""


class SupersededEntry(NamedTuple):
    """A waiting change and the newer one that supersedes it."""

    change: QueuedChange
    by: QueuedChange


def enqueue(
    queue: tuple[QueuedChange, ...], new: QueuedChange
) -> tuple[tuple[QueuedChange, ...], tuple[SupersededEntry, ...]]:
    """Return the queue in order of sequence with `new`, without superseded changes.

    A newer change may supersede `new` itself.
    """
    candidates = sorted((*queue, new), key=lambda change: change.sequence)
    kept: list[QueuedChange] = []
    gone: list[SupersededEntry] = []
    for index, change in enumerate(candidates):
        winner = next((later for later in candidates[index + 1 :] if overtakes(later, change)), None)
        if winner is None:
            kept.append(change)
        else:
            gone.append(SupersededEntry(change, winner))
    return tuple(kept), tuple(gone)


CAN_PASS = frozenset({ChangeKind.REPAIR, ChangeKind.MOVE})
"""Kinds that may run before older changes: repairs, and moves away from a lost region (failovers)."""

PASSES_RETIREMENT = CAN_PASS | {ChangeKind.ROLLBACK}
"""Kinds that may run while a retirement waits for a freeze: a rollback leaves a denied snapshot. Other runs that wait
are stopped by a rollback."""

WAITS = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.MOVE, ChangeKind.RETIRE})
"""Kinds whose run may wait for something before it moves anything, also while repairs are carried out."""

EMERGENCIES = frozenset({ChangeKind.ROLLBACK, ChangeKind.REPAIR})
"""Kinds whose run waits for supply only, and is passed by failovers only."""


def next_of(queue: tuple[QueuedChange, ...], *, held: bool, passing: Collection[str] = ()) -> QueuedChange | None:
    """Return the waiting change to run next: a rollback first, then a failover, then a repair.

    `passing` has the ids of changes that may pass others, failovers among them. While paused only those and
    retirements.
    """
    ranked = [(rank, change) for change in queue if (rank := _rank(change, passing)) is not None]
    first = min(ranked, key=lambda found: (found[0], found[1].sequence), default=None)
    return first[1] if first is not None else oldest_of(queue, held=held)


def _rank(change: QueuedChange, passing: Collection[str]) -> int | None:
    """Return the rank of an emergency, the first one is 0; None for another change."""
    if change.kind is ChangeKind.ROLLBACK:
        return 0
    if change.kind is ChangeKind.REPAIR:
        return 2
    return 1 if change.id in passing else None


def can_pass(running: ChangeKind) -> frozenset[ChangeKind]:
    """Return the kinds that may pass a run of this kind while it waits. The store decides which changes of them do."""
    if running is ChangeKind.RETIRE:
        return PASSES_RETIREMENT
    if running in WAITS:
        return CAN_PASS
    return CAN_PASS - EMERGENCIES if running in EMERGENCIES else frozenset()


def oldest_of(queue: tuple[QueuedChange, ...], *, held: bool) -> QueuedChange | None:
    """Return the oldest waiting change; while paused the oldest one that passes the pause."""
    return next((change for change in queue if not held or change.kind in PASSES_PAUSE), None)


def stops(new: QueuedChange, running: QueuedChange) -> bool:
    """Check whether a new change preempts the running one.

    A rollback or a retirement does not wait for a newer rollout.
    """
    urgent = new.kind in URGENT and new.sequence > running.sequence
    return urgent and running.kind in {ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.MOVE, ChangeKind.REPAIR}


def overtakes(later: QueuedChange, earlier: QueuedChange) -> bool:
    """Check whether a newer change supersedes an older one.

    A publish is not part of a newer apply, which uses the serving generation.
    """
    return earlier.kind in _OVERTAKES[later.kind]
