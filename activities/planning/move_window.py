"""One turn of a replan that moves a fleet: check the models that move, and start the next ones.

One activity for a whole window: no model occupies a slot of the worker while it moves. The store has the models to move
and their progress; a turn reads outside the writing units, and each change is recorded in a unit of its model.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from temporalio import activity

from activities.planning.move_order import Cell, SupplyMove, fits
from activities.planning.problem import running
from activities.runtime.deadline import beat
from activities.runtime.single_calls import OF_ONE, describe
from activities.state.drained_fleet import DrainedFleet, repairs_loss, without_drained
from ipnext import names
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.replans.moves import (
    NAMED,
    MoveTrouble,
    MoveTurn,
    MoveTurnResult,
    PlannedMove,
    ReplanProgress,
)
from ipnext.model.planning.plan import CurrentState
from ipnext.store.records import ModelPlacement
from ipnext.store.repository import Repository
from ipnext.store.store import Store

SUBMITS = 8
"""Changes that are submitted to their entities in parallel."""

CANDIDATES = 4
"""Multiple of the window's free places that is searched for models with supply now."""

PAGE = 1000
"""Moves in progress that one query reads."""

GONE = "the plan in force does not know it any more"


class Submit(Protocol):
    """Submits a recorded change to its model's entity; `again` marks a submission that is not the first.

    Raises Unavailable.
    """

    def __call__(self, change: Change, again: str = "") -> None:
        """Submit the change."""


@dataclass(frozen=True)
class _Look:
    """State of the moves in progress, and the next ones: read in one unit."""

    moving: Sequence[PlannedMove]
    held: Mapping[str, str]
    """Model -> reason of its pause or freeze, for models that move."""
    moved: frozenset[int]
    failed: Mapping[int, str]
    chosen: Sequence[tuple[PlannedMove, ModelPlacement]]
    paused: str
    repair_waits: bool


class MoverActivities:
    """Move activities, on the store and a function that submits a change."""

    def __init__(self, store: Store, submit: Submit) -> None:
        self._store = store
        self._submit = submit

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.move_models,)

    @activity.defn(name="move_models", no_thread_cancel_exception=True)
    def move_models(self, turn: MoveTurn) -> MoveTurnResult:
        """Check the models that move, and start as many of the next ones as there is room and supply for.

        A model is started once for each plan. A model whose supply others still occupy is skipped, unless no move in
        progress could free it: then its transition reports the missing supply. While moves are paused none is started,
        unless the replan repairs the loss of a region. A model that can't be read, or whose move can't be recorded, has
        failed, and stops no other.
        """
        with self._store.read() as repository:
            look = _look(repository, turn)
        changes, failed = self._record_all(look.chosen)
        progress = self._written(turn, look, changes, {**look.failed, **failed})
        self._submit_all([change for change in changes.values() if change.state is ChangeState.RECORDED])
        return MoveTurnResult(progress=progress, repair_waits=look.repair_waits)

    def _record_all(
        self, chosen: Sequence[tuple[PlannedMove, ModelPlacement]]
    ) -> tuple[Mapping[int, Change], Mapping[int, str]]:
        """Record the moves; return their changes and their errors, by position. Raises Unavailable."""
        changes, failed = dict[int, Change](), dict[int, str]()
        for move, placed in chosen:
            try:
                changes[move.position] = self._record_move(placed)
            except Unavailable:
                raise
            except OF_ONE as error:
                failed[move.position] = f"its move can't be recorded: {describe(error)}"
        return changes, failed

    def _record_move(self, placed: ModelPlacement) -> Change:
        change_id = names.move_id(placed.plan_id, placed.model)
        with self._store.begin(placed.model) as repository:
            return repository.add_change(placed.model, ChangeKind.MOVE, change_id=change_id, plan_id=placed.plan_id)

    def _written(
        self, turn: MoveTurn, look: _Look, changes: Mapping[int, Change], failed: Mapping[int, str]
    ) -> ReplanProgress:
        """Record the changes of the turn, if there are any; return the progress afterwards."""
        if not (changes or look.moved or failed):
            with self._store.read() as repository:
                progress = _progress(repository, turn, look)
                if repository.progress_of(turn.plan_id) == progress:
                    return progress
        with self._store.begin(turn.plan_id) as repository:
            asked = {position: change.id for position, change in changes.items()}
            repository.mark_asked(turn.plan_id, asked)
            repository.mark_moved(turn.plan_id, look.moved if turn.wait else {*look.moved, *asked})
            repository.mark_failed(turn.plan_id, failed)
            progress = _progress(repository, turn, look)
            repository.note_progress(turn.plan_id, progress)
        return progress

    def _submit_all(self, changes: Sequence[Change]) -> None:
        """Submit changes. One that fails is recorded and submitted again (`ipnext.api.workflow_engine.outbox`)."""
        beat(f"asking {len(changes)} models to move")

        def one(change: Change) -> None:
            with suppress(*OF_ONE):
                self._submit(change)

        with ThreadPoolExecutor(SUBMITS, thread_name_prefix="ask-to-move") as pool:
            list(pool.map(one, changes))


def _look(repository: Repository, turn: MoveTurn) -> _Look:
    moving = _under_way(repository, turn.plan_id)
    changes = repository.changes_named([move.change_id for move in moving])
    held = {**repository.held_models([move.model for move in moving]), **repository.frozen_models()}
    moved, failed = set[int](), dict[int, str]()
    for move in moving:
        change = changes.get(move.change_id)
        if change is None or not change.state.final:
            continue
        if change.state is ChangeState.DONE:
            moved.add(move.position)
        else:
            failed[move.position] = f"{change.state}: {change.message}"
    left = [move for move in moving if move.position not in moved and move.position not in failed]
    busy = [move for move in left if move.model not in held]
    paused = _pause_reason(repository, turn.plan_id)
    room = max(0, turn.window - _taking(busy, turn.patience_seconds)) if turn.asking and not paused else 0
    chosen, unplaced = _candidates(repository, turn.plan_id, room, busy=bool(busy))
    return _Look(
        moving=left,
        held={move.model: held[move.model] for move in left if move.model in held},
        moved=frozenset(moved),
        failed={**failed, **unplaced},
        chosen=chosen,
        paused=paused,
        repair_waits=_repair_waits(repository),
    )


def _under_way(repository: Repository, plan_id: str) -> list[PlannedMove]:
    """Return all models with a move that was started and has not ended, page by page."""
    found = list[PlannedMove]()
    while page := repository.moves(plan_id, state="moving", after=found[-1].position if found else -1, limit=PAGE):
        found += page
    return found


def _candidates(
    repository: Repository, plan_id: str, room: int, *, busy: bool
) -> tuple[list[tuple[PlannedMove, ModelPlacement]], Mapping[int, str]]:
    """Return the next models that fit, at most `room`; and those without a readable placement, with the reason."""
    if not room:
        return [], {}
    waiting = repository.moves(plan_id, state="waiting", limit=CANDIDATES * room)
    free = _free(repository) if waiting else {}
    fitting, passed = list[tuple[PlannedMove, ModelPlacement]](), list[tuple[PlannedMove, ModelPlacement]]()
    unplaced = dict[int, str]()
    for move in waiting:
        try:
            placed = repository.placement(move.model)
            if placed is None:
                unplaced[move.position] = GONE
            elif len(fitting) < room:
                (fitting if fits(_room_of(repository, placed), free) else passed).append((move, placed))
        except Unavailable:
            raise
        except OF_ONE as error:
            unplaced[move.position] = f"it can't be read: {describe(error)}"
    return fitting or ([] if busy else passed[:1]), unplaced


def _taking(busy: Sequence[PlannedMove], patience_seconds: float) -> int:
    """Count the models that occupy a place of the window: those whose move began less than `patience_seconds` ago."""
    long_ago = datetime.now(UTC) - timedelta(seconds=patience_seconds)
    return sum(move.asked_at is None or move.asked_at > long_ago for move in busy)


def _pause_reason(repository: Repository, plan_id: str) -> str:
    """Reason why no move may start now; empty if moves may.

    A repair of a lost region ignores a pause: its users have nothing else.
    """
    pause = repository.moves_pause()
    if pause is None or repairs_loss(repository, plan_id):
        return ""
    return pause.reason


def _progress(repository: Repository, turn: MoveTurn, look: _Look) -> ReplanProgress:
    counts = repository.move_counts(turn.plan_id)
    moved = counts.get("moved", 0)
    return ReplanProgress(
        total=sum(counts.values()),
        moved=moved,
        moving=counts.get("moving", 0),
        held=len(look.held),
        waiting=counts.get("waiting", 0),
        failed=counts.get("failed", 0),
        moving_models=_first_moving(repository, turn.plan_id, look),
        held_models=tuple(sorted(look.held))[:NAMED],
        troubles=_troubles(repository, turn.plan_id) if counts.get("failed") else (),
        paused=look.paused,
        per_minute=round(60 * moved / turn.busy_seconds, 1) if turn.busy_seconds > 0 else 0.0,
    )


def _first_moving(repository: Repository, plan_id: str, look: _Look) -> tuple[str, ...]:
    moving = repository.moves(plan_id, state="moving", limit=NAMED + min(len(look.held), PAGE))
    return tuple(move.model for move in moving if move.model not in look.held)[:NAMED]


def _troubles(repository: Repository, plan_id: str) -> tuple[MoveTrouble, ...]:
    return repository.newest_failures(plan_id, limit=NAMED)


def _repair_waits(repository: Repository) -> bool:
    """Check whether a region is lost and its drain's replan has not begun.

    Until then models may be answered nowhere.
    """
    return bool(DrainedFleet.of(repository.drains()).lost) and repository.waiting_replans("drain") > 0


def _free(repository: Repository) -> Mapping[Cell, float]:
    """Return the free units by cell: 0 if all placed or running units fit, below 0 if some have to leave first."""
    fleet = without_drained(repository.fleet().spec, DrainedFleet.of(repository.drains()))
    needed = repository.units_needed(but=())
    return {
        (item.region, item.hardware): item.units - needed.get((item.region, item.hardware), 0.0)
        for item in fleet.supply
    }


def _room_of(repository: Repository, placed: ModelPlacement) -> SupplyMove:
    """Return the cells that a model grows in. Their units count as needed already, so the growth itself is 0."""
    now = running(repository.deployments(placed.model), ())
    grown = SupplyMove.of(placed, now if now.replicas else CurrentState())
    return SupplyMove(placed.model, dict.fromkeys(grown.grows, 0.0), grown.shrinks)
