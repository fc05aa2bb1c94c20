"""Asking one model to take its place in a new plan, and waiting until it has."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.waiting import POLL_SECONDS, beat
from ipnext import names
from ipnext.model.lifecycle import Change, ChangeKind, ChangeState, Moved, MoveInput
from ipnext.model.status import Reason
from ipnext.store.repository import Repository
from ipnext.store.session import Store

Submit = Callable[[Change], None]
"""Gives a recorded change to its model's entity. Raises Unavailable."""


class MoveActivities:
    """Needs the store and a way to submit a change."""

    def __init__(self, store: Store, submit: Submit, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._submit = submit
        self._pause = pause

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (self.move_model,)

    @activity.defn(name="move_model", no_thread_cancel_exception=True)
    def move_model(self, move: MoveInput) -> Moved:
        """Record a MOVE of the model to what the plan in force gives it, once, and submit it.

        With `wait`, answer when it has ended, or at once where a freeze holds the model back: the move goes on by itself
        when that ends, and no replan waits for it. A model that the plan in force does not know any more has no way to go.
        """
        with self._store.begin(move.model) as repository:
            placed = repository.placement(move.model)
            if placed is None:
                message = "the plan in force does not know it any more"
                return Moved(model=move.model, change_id="", state=ChangeState.SUPERSEDED, message=message)
            change_id = names.move_id(placed.plan_id, move.model)
            change = repository.add_change(move.model, ChangeKind.MOVE, change_id=change_id, plan_id=placed.plan_id)
        if change.state is ChangeState.RECORDED:
            self._submit(change)
        while move.wait and not change.state.final:
            beat(f"waiting for {move.model}: {change.state}")
            self._pause(POLL_SECONDS)
            with self._store.read() as repository:
                change = repository.change(change_id)
                held = _held_back(repository, move.model)
            if held is not None and not change.state.final:
                return Moved(model=move.model, change_id=change_id, state=change.state, message=held)
        return Moved(model=move.model, change_id=change_id, state=change.state, message=change.message)


def _held_back(repository: Repository, model: str) -> str | None:
    """Which change of the model waits for a freeze, in words: the move itself, or one that runs before it."""
    held = next((change for change in repository.changes(model) if _frozen(change)), None)
    return None if held is None else f"{Reason.FROZEN}: {held.kind} {held.id} is {held.message}"


def _frozen(change: Change) -> bool:
    return change.state is ChangeState.RUNNING and change.reason is Reason.FROZEN
