"""One turn of a replan that moves a fleet: how those stand that were asked, and the next ones are asked.

One activity for a whole window: no model holds a slot of the worker while it moves.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from temporalio import activity

from activities.drained import Drained, without_drained
from activities.move_order import Cell, Move, fits
from activities.moves import Submit
from activities.problems import running
from activities.waiting import beat
from ipnext import names
from ipnext.model.lifecycle import Change, ChangeKind, ChangeState
from ipnext.model.moving import MoveAsked, MoveSeen, MoveTurn, MoveTurnResult
from ipnext.model.plan import CurrentState
from ipnext.model.status import ConditionType
from ipnext.store.records import Placement
from ipnext.store.repository import Repository
from ipnext.store.session import Store

SUBMITS = 8
"""Changes that are given to their entities side by side."""


class MoverActivities:
    """Needs the store and a way to submit a change."""

    def __init__(self, store: Store, submit: Submit) -> None:
        self._store = store
        self._submit = submit

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (self.move_models,)

    @activity.defn(name="move_models", no_thread_cancel_exception=True)
    def move_models(self, turn: MoveTurn) -> MoveTurnResult:
        """Look at those that move, and ask as many candidates as there is room and supply for: once for each plan.

        A candidate whose supply others still hold is passed over, unless nothing moves that could free it: then its
        transition says what it lacks.
        """
        with self._store.begin() as repository:
            seen = [_seen(repository, asked) for asked in turn.moving]
            changes, known = self._asked(repository, turn, busy=any(found.state == "moving" for found in seen))
            if turn.progress is not None:
                repository.note_progress(turn.plan_id, turn.progress)
            repair_waits = _repair_waits(repository)
        self._submit_all([change for change in changes if change.state is ChangeState.RECORDED])
        asked = [MoveSeen(model=change.model, state="moving", change_id=change.id) for change in changes]
        return MoveTurnResult(seen=(*seen, *known, *asked), repair_waits=repair_waits)

    def _asked(self, repository: Repository, turn: MoveTurn, *, busy: bool) -> tuple[list[Change], list[MoveSeen]]:
        """Record the moves of those that fit; and what is said of candidates that have no way to go."""
        if not turn.room or not turn.candidates:
            return [], []
        free, chosen, gone = _free(repository), list[Placement](), list[MoveSeen]()
        passed = list[Placement]()
        for model in turn.candidates:
            placed = repository.placement(model)
            if placed is None:
                gone.append(
                    MoveSeen(model=model, state="failed", message="the plan in force does not know it any more")
                )
            elif len(chosen) < turn.room:
                (chosen if fits(_room_of(repository, placed), free) else passed).append(placed)
        if not chosen and not busy:
            chosen = passed[:1]
        return [_recorded(repository, placed) for placed in chosen], gone

    def _submit_all(self, changes: Sequence[Change]) -> None:
        beat(f"asking {len(changes)} models to move")
        with ThreadPoolExecutor(SUBMITS, thread_name_prefix="ask-to-move") as pool:
            list(pool.map(self._submit, changes))


def _recorded(repository: Repository, placed: Placement) -> Change:
    change_id = names.move_id(placed.plan_id, placed.model)
    return repository.add_change(placed.model, ChangeKind.MOVE, change_id=change_id, plan_id=placed.plan_id)


def _seen(repository: Repository, asked: MoveAsked) -> MoveSeen:
    """How a model that was asked stands."""
    change = repository.change(asked.change_id)
    found = MoveSeen(model=asked.model, state="moving", change_id=asked.change_id)
    if change.state is ChangeState.DONE:
        return found.model_copy(update={"state": "moved"})
    if change.state.final:
        told = f"{change.state}: {change.message}"
        return found.model_copy(update={"state": "failed", "message": told})
    held = next((c for c in repository.conditions(asked.model) if c.type is ConditionType.PROGRESSING), None)
    if held is not None and held.status == "False":
        return found.model_copy(update={"state": "held", "message": f"{held.reason}: {held.message}"})
    return found


def _repair_waits(repository: Repository) -> bool:
    """Whether a region is lost and its drain's replan has not begun: models may be answered nowhere until it has."""
    return bool(Drained.of(repository.drains()).lost) and repository.waiting_replans("drain") > 0


def _free(repository: Repository) -> Mapping[Cell, float]:
    """0 in cells whose supply holds all that is placed or runs there, below 0 where something has to leave first."""
    fleet = without_drained(repository.fleet().spec, Drained.of(repository.drains()))
    needed = repository.units_needed(but=())
    return {
        (item.region, item.hardware): item.units - needed.get((item.region, item.hardware), 0.0)
        for item in fleet.supply
    }


def _room_of(repository: Repository, placed: Placement) -> Move:
    """The cells that a model grows in. What it takes there is counted as needed already, so it asks for nothing more."""
    now = running(repository.deployments(placed.model), ())
    grown = Move.of(placed, now if now.replicas else CurrentState())
    return Move(placed.model, dict.fromkeys(grown.grows, 0.0), grown.shrinks)
