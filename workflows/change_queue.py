"""Which change runs next, and which ones a newer change makes pointless: pure functions of the queue."""

from typing import NamedTuple

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle import ChangeKind, QueuedChange

_OVERTAKES = {
    ChangeKind.PUBLISH: frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY}),
    ChangeKind.ROLLBACK: frozenset({ChangeKind.PUBLISH, ChangeKind.ROLLBACK}),
    ChangeKind.APPLY: frozenset({ChangeKind.APPLY}),
    ChangeKind.MOVE: frozenset({ChangeKind.MOVE}),
    ChangeKind.RETIRE: frozenset(ChangeKind) - {ChangeKind.RETIRE},
    ChangeKind.REPAIR: frozenset({ChangeKind.REPAIR}),
}
"""Kind -> the kinds of older waiting changes that it makes pointless.

A publish plans by the newest manifest, so a waiting apply is part of it; a move is not, for the publish may be refused.
"""


URGENT = frozenset({ChangeKind.ROLLBACK, ChangeKind.RETIRE})
"""Kinds that no pause blocks, and that end the running change."""

PASSES_PAUSE = URGENT | {ChangeKind.REPAIR}
"""Kinds that no pause blocks. A repair ends nothing that runs."""


class Superseded(NamedTuple):
    """A waiting change and the newer one that makes it pointless."""

    change: QueuedChange
    by: QueuedChange


def enqueue(
    queue: tuple[QueuedChange, ...], new: QueuedChange
) -> tuple[tuple[QueuedChange, ...], tuple[Superseded, ...]]:
    """The queue in order of sequence with `new` in it, less what is superseded; `new` itself may be, by a newer one."""
    candidates = sorted((*queue, new), key=lambda change: change.sequence)
    kept: list[QueuedChange] = []
    gone: list[Superseded] = []
    for index, change in enumerate(candidates):
        winner = next((later for later in candidates[index + 1 :] if overtakes(later, change)), None)
        if winner is None:
            kept.append(change)
        else:
            gone.append(Superseded(change, winner))
    return tuple(kept), tuple(gone)


def next_of(queue: tuple[QueuedChange, ...], *, held: bool) -> QueuedChange | None:
    """Which waiting change runs next: a rollback before all others; none but rollbacks, retirements and repairs while paused."""
    rollback = next((change for change in queue if change.kind is ChangeKind.ROLLBACK), None)
    if rollback is not None:
        return rollback
    return next((change for change in queue if not held or change.kind in PASSES_PAUSE), None)


def stops(new: QueuedChange, running: QueuedChange) -> bool:
    """Whether a new change ends the running one early: a rollback or a retirement does not wait for a newer rollout."""
    urgent = new.kind in URGENT and new.sequence > running.sequence
    return urgent and running.kind in {ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.MOVE, ChangeKind.REPAIR}


def overtakes(later: QueuedChange, earlier: QueuedChange) -> bool:
    """Whether a newer change makes an older one pointless: a publish is no part of a newer apply, which takes what serves."""
    return earlier.kind in _OVERTAKES[later.kind]
