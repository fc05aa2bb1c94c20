"""The models that a replan has to move, row by row, and the pause of all moves.

The list stays in the store: a fleet's names do not fit into the payloads of a workflow. Rows of a plan are written in a
unit that names the plan (`Store.begin(plan_id)`), so that no unit of a model waits for them.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import insert, update
from sqlmodel import col, func, select

from ipnext.model.lifecycle.replans.moves import MovesPause, MoveTrouble, PlannedMove
from ipnext.store.tables.planning import MovesPauseRow, ReplanMoveRow
from ipnext.store.unit_of_work import UnitOfWork, batches, rows

THE_PAUSE = 1

WAITING, MOVING, MOVED, FAILED = "waiting", "moving", "moved", "failed"


class Moves(UnitOfWork):
    """The moves of replans, in their order."""

    def list_moves(self, plan_id: str, models: Sequence[str]) -> None:
        """Store the models that a replan has to move, in this order. An existing list stays."""
        self._writing(plan_id)
        if not models or self.move_counts(plan_id):
            return
        columns = [
            {"plan_id": plan_id, "position": at, "model": model, "state": WAITING, "change_id": "", "message": ""}
            for at, model in enumerate(models)
        ]
        self._connection.execute(insert(ReplanMoveRow), columns)

    def moves(self, plan_id: str, *, state: str, after: int = -1, limit: int = 1000) -> tuple[PlannedMove, ...]:
        """Return a page of a replan's moves in one state, in their order, after position `after`."""
        row = ReplanMoveRow
        query = select(row).where(row.plan_id == plan_id, row.state == state, row.position > after)
        found = self._session.exec(query.order_by(col(row.position)).limit(rows(limit)))
        return tuple(_move(row) for row in found)

    def move_counts(self, plan_id: str) -> Mapping[str, int]:
        """Count a replan's models by state."""
        row = ReplanMoveRow
        query = select(row.state, func.count()).where(row.plan_id == plan_id).group_by(row.state)
        return dict(self._session.exec(query).all())

    def newest_failures(self, plan_id: str, *, limit: int) -> tuple[MoveTrouble, ...]:
        """Return the models of a replan whose move failed, the newest first."""
        row = ReplanMoveRow
        query = select(row.model, row.message).where(row.plan_id == plan_id, row.state == FAILED)
        found = self._session.exec(
            query.order_by(col(row.ended_at).desc(), col(row.position).desc()).limit(rows(limit))
        )
        return tuple(MoveTrouble(model=model, message=message) for model, message in found)

    def mark_asked(self, plan_id: str, moves: Mapping[int, str]) -> None:
        """Record that models were requested to move: position -> the change that moves the model."""
        for position, change_id in sorted(moves.items()):
            self._mark(plan_id, [position], state=MOVING, change_id=change_id, asked_at=self._now())

    def mark_moved(self, plan_id: str, positions: Collection[int]) -> None:
        """Record that models have been moved."""
        for some in batches(positions):
            self._mark(plan_id, some, state=MOVED, ended_at=self._now())

    def mark_failed(self, plan_id: str, troubles: Mapping[int, str]) -> None:
        """Record the models whose move failed, and why: by position."""
        for position, message in sorted(troubles.items()):
            self._mark(plan_id, [position], state=FAILED, message=message, ended_at=self._now())

    def forget_moves(self, *, keep: Collection[str]) -> None:
        """Delete the lists of all replans except these. Only replans write these rows, one at a time."""
        self._writing_any()
        gone = ReplanMoveRow.__table__.delete()  # type: ignore[attr-defined]
        self._connection.execute(gone.where(col(ReplanMoveRow.plan_id).not_in(tuple(keep))))

    def moves_pause(self) -> MovesPause | None:
        """Return why no further model is requested to move, and since when; None if moves continue."""
        row = self._get(MovesPauseRow, THE_PAUSE)
        return None if row is None else MovesPause(reason=row.reason, paused_at=row.paused_at)

    def pause_moves(self, reason: str) -> MovesPause:
        """Pause all moves of replans. A present pause keeps its time and gets the new reason."""
        self._writing(None)
        row = self._get(MovesPauseRow, THE_PAUSE)
        if row is None:
            row = MovesPauseRow(id=THE_PAUSE, reason=reason, paused_at=self._now())
        row.reason = reason
        self._add(row)
        return MovesPause(reason=row.reason, paused_at=row.paused_at)

    def _end_pause(self) -> bool:
        row = self._get(MovesPauseRow, THE_PAUSE)
        if row is None:
            return False
        self._session.delete(row)
        self._session.flush()
        return True

    def _mark(self, plan_id: str, positions: Collection[int], **values: str | datetime) -> None:
        self._writing(plan_id)
        row = ReplanMoveRow
        marked = update(row).where(col(row.plan_id) == plan_id, col(row.position).in_(tuple(positions)))
        self._connection.execute(marked.values(**values))


def _move(row: ReplanMoveRow) -> PlannedMove:
    return PlannedMove(position=row.position, model=row.model, change_id=row.change_id, asked_at=row.asked_at)
