"""Replans: requests in order, and their outcomes. A recorded replan is acknowledged and never lost."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, true
from sqlmodel import col, func, select

from ipnext import names
from ipnext.errors import Conflict, InvalidInput, NotFound
from ipnext.model.lifecycle.replans.moves import ReplanProgress
from ipnext.model.lifecycle.replans.replan import Replan, ReplanState, ReplanTrigger
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import canonical_json
from ipnext.model.wire import decode
from ipnext.store.planning.moves import Moves
from ipnext.store.tables.planning import ReplanRow
from ipnext.store.unit_of_work import MOST_ROWS, document, plain, rows

LONGEST_ID = 200
"""Characters of a replan's id."""

LONGEST_WAIT = 6
"""Further changes postpone a recorded replan, but at most to this many delays after the first."""

_OPEN = tuple(state.value for state in ReplanState if not state.final)
_TAKEN = (ReplanState.QUEUED.value, ReplanState.PLANNING.value, ReplanState.MOVING.value)
_WAITING = (ReplanState.RECORDED.value, ReplanState.QUEUED.value)


class Replans(Moves):
    """The journal of replans."""

    def add_replan(
        self, replan_id: str, trigger: ReplanTrigger, *, dry_run: bool = False, max_moves: int | None = None
    ) -> Replan:
        """Record a replan, due at once; the same id again returns the recorded one.

        Conflict if the id belongs to another one; InvalidInput if it is empty or too long.
        """
        self._writing(None)
        if not 0 < len(replan_id) <= LONGEST_ID:
            msg = f"replanId: must have 1 to {LONGEST_ID} characters, got {len(replan_id)}"
            raise InvalidInput(msg, field="replanId", value=replan_id[:LONGEST_ID])
        row = self._find_replan(replan_id)
        if row is None:
            return self._add_replan(replan_id, trigger, not_before=self._now(), dry_run=dry_run, max_moves=max_moves)
        if (row.trigger, row.dry_run, row.max_moves) != (trigger, dry_run, max_moves):
            msg = f"replan {replan_id!r} was asked for with other options; choose another id"
            raise Conflict(msg)
        return _replan(row)

    def add_supply_replan(self, fleet_version: int, *, delay_seconds: float) -> Replan:
        """Record the replan for a changed fleet: after a delay in which further changes join it.

        Each further change postpones it by the delay again, at most LONGEST_WAIT delays in all.
        """
        self._writing(None)
        now = self._now()
        query = select(ReplanRow).where(ReplanRow.trigger == "supply", ReplanRow.state == ReplanState.RECORDED.value)
        row = self._session.exec(query).first()
        if row is None:
            due = now + timedelta(seconds=delay_seconds)
            return self._add_replan(names.supply_replan_id(fleet_version), "supply", not_before=due)
        latest = row.created_at + timedelta(seconds=delay_seconds * LONGEST_WAIT)
        row.not_before = max(row.not_before, min(now + timedelta(seconds=delay_seconds), latest))
        self._add(row)
        return _replan(row)

    def add_shortage_replan(self, model: str, sequence: int, *, delay_seconds: float = 0.0) -> Replan:
        """Record the replan for a change that ended with less capacity than traffic; once for each change.

        It is due after `delay_seconds`, or joins another one before.

        Allowed in a unit of one model: no other unit writes this row.
        """
        self._writing_any()
        replan_id = names.shortage_replan_id(model, sequence)
        row, due = self._find_replan(replan_id), self._now() + timedelta(seconds=delay_seconds)
        return _replan(row) if row else self._add_replan(replan_id, "shortage", not_before=due)

    def replan(self, replan_id: str) -> Replan:
        """Return one replan. Raises NotFound."""
        row = self._find_replan(replan_id)
        if row is None:
            msg = f"replan {replan_id!r} is not known"
            raise NotFound(msg)
        return _replan(row)

    def replans(self, *, limit: int = 20) -> tuple[Replan, ...]:
        """Return replans, newest first."""
        query = select(ReplanRow).order_by(col(ReplanRow.ordinal).desc()).limit(rows(limit))
        return tuple(_replan(row) for row in self._session.exec(query))

    def replan_under_way(self) -> Replan | None:
        """Return the newest replan whose models move now, if any."""
        query = select(ReplanRow).where(ReplanRow.state == ReplanState.MOVING.value)
        row = self._session.exec(query.order_by(col(ReplanRow.ordinal).desc()).limit(1)).first()
        return None if row is None else _replan(row)

    def replans_open(self) -> int:
        """Count the replans that wait for a run, those blocked by a pause included."""
        query = select(func.count()).select_from(ReplanRow).where(col(ReplanRow.state).in_(_WAITING))
        return self._session.exec(query).one()

    def due_replans(self) -> tuple[Replan, ...]:
        """Return the due replans that are not submitted to a workflow yet, in the order of recording."""
        query = select(ReplanRow).where(ReplanRow.state == ReplanState.RECORDED.value)
        query = query.where(ReplanRow.not_before <= self._now()).order_by(col(ReplanRow.ordinal))
        return tuple(_replan(row) for row in self._session.exec(query))

    def claimed_replans(self) -> tuple[Replan, ...]:
        """Return the replans that the workflow has started and not finished, oldest first.

        Those blocked by a pause are left out.

        If there are any, the workflow has to run.
        """
        query = select(ReplanRow).where(col(ReplanRow.state).in_(_TAKEN), self._not_paused())
        return tuple(_replan(row) for row in self._session.exec(query.order_by(col(ReplanRow.ordinal))))

    def waiting_replans(self, trigger: ReplanTrigger | None = None) -> int:
        """Count the due replans that wait for a run: all, or those of one trigger.

        Those blocked by a pause don't count.
        """
        query = (
            select(func.count()).select_from(ReplanRow).where(col(ReplanRow.state).in_(_WAITING), self._not_paused())
        )
        query = query if trigger is None else query.where(ReplanRow.trigger == trigger)
        return self._session.exec(query.where(ReplanRow.not_before <= self._now())).one()

    def queue_replans(self, ids: Collection[str]) -> None:
        """Mark replans as submitted to the workflow."""
        self._writing(None)
        for row in self._of(ids):
            if row.state == ReplanState.RECORDED.value:
                row.state = ReplanState.QUEUED.value
                self._add(row)

    def claim_replans(self, plan_id: str, *, run_id: str) -> tuple[Replan, ...]:
        """Claim the replans that one plan answers: the oldest open one and all open ones of the same options.

        Empty if nothing is open. While moves are paused only drains and dry runs are claimed: another plan would count
        its models twice, at their present and their planned places, as long as the pause lasts. The same plan again
        returns the same replans. A replan whose run was terminated is open, so the next run claims it; one that still
        waits for further changes of the fleet joins at once.
        """
        self._writing(None)
        query = select(ReplanRow).where(col(ReplanRow.state).in_(_OPEN)).order_by(col(ReplanRow.ordinal))
        found = self._session.exec(query).all()
        taken = [row for row in found if row.plan_id == plan_id]
        if not taken:
            found = self._session.exec(query.where(self._not_paused())).all()
            taken = [row for row in found if _options(row) == _options(found[0])]
        for row in taken:
            row.state, row.plan_id, row.run_id = ReplanState.PLANNING.value, plan_id, run_id
            row.started_at = row.started_at or self._now()
            self._add(row)
        return tuple(_replan(row) for row in taken)

    def update_replans(
        self,
        plan_id: str,
        *,
        state: ReplanState,
        reason: Reason = Reason.SUCCEEDED,
        message: str = "",
        moves: int = 0,
    ) -> tuple[Replan, ...]:
        """Write the state of the replans that a plan answers, in a unit that names the plan; a final one stays."""
        self._writing(plan_id)
        query = select(ReplanRow).where(ReplanRow.plan_id == plan_id).order_by(col(ReplanRow.ordinal))
        found = [row for row in self._session.exec(query) if not ReplanState(row.state).final]
        for row in found:
            row.state, row.reason, row.message = state.value, reason.value, message
            row.moves = moves
            row.finished_at = self._now() if state.final else None
            self._add(row)
        return tuple(_replan(row) for row in found)

    def list_moves(self, plan_id: str, models: Sequence[str]) -> None:
        """Store the models that a replan has to move, in this order; the first of them also in its row."""
        super().list_moves(plan_id, models)
        for row in self._session.exec(select(ReplanRow).where(ReplanRow.plan_id == plan_id)):
            row.models = canonical_json(list(models[:MOST_ROWS]))
            self._add(row)

    def find_triggers(self, plan_id: str) -> frozenset[str]:
        """Return the triggers of the replans that a plan answers."""
        return frozenset(self._session.exec(select(ReplanRow.trigger).where(ReplanRow.plan_id == plan_id)))

    def resume_moves(self) -> bool:
        """End the pause of the moves. Replans that waited for its end are submitted to the workflow again.

        False if there was none.
        """
        self._writing(None)
        if not self._end_pause():
            return False
        queued = ReplanRow.state == ReplanState.QUEUED.value
        for row in self._session.exec(select(ReplanRow).where(queued)):
            row.state = ReplanState.RECORDED.value
            self._add(row)
        return True

    def note_progress(self, plan_id: str, progress: ReplanProgress) -> None:
        """Write the progress of the replans that a plan answers."""
        self._writing(plan_id)
        for row in self._session.exec(select(ReplanRow).where(ReplanRow.plan_id == plan_id)):
            row.progress = document(progress)
            self._add(row)

    def progress_of(self, plan_id: str) -> ReplanProgress | None:
        """Return the last stored progress of the replans that a plan answers."""
        query = select(ReplanRow.progress).where(ReplanRow.plan_id == plan_id, col(ReplanRow.progress).is_not(None))
        text = self._session.exec(query.limit(1)).first()
        return None if text is None else decode(ReplanProgress, text)

    def replan_counts(self) -> Mapping[tuple[str, str], int]:
        """Map (trigger, state) to the number of ended replans, ever."""
        query = select(ReplanRow.trigger, ReplanRow.state, func.count()).where(col(ReplanRow.state).not_in(_OPEN))
        found = self._session.exec(query.group_by(ReplanRow.trigger, ReplanRow.state))
        return {(trigger, state): count for trigger, state, count in found}

    def replica_moves(self) -> int:
        """Count the replicas that adopted plans started, ever; replans that share a plan count once."""
        adopted = ReplanRow.state == ReplanState.ADOPTED.value
        plans = select(func.max(ReplanRow.moves).label("moves")).where(adopted).group_by(ReplanRow.plan_id).subquery()
        return int(self._session.exec(select(func.coalesce(func.sum(plans.c.moves), 0))).one())

    def _add_replan(
        self,
        replan_id: str,
        trigger: ReplanTrigger,
        *,
        not_before: datetime,
        dry_run: bool = False,
        max_moves: int | None = None,
    ) -> Replan:
        row = ReplanRow(
            id=replan_id,
            trigger=trigger,
            dry_run=dry_run,
            max_moves=max_moves,
            state=ReplanState.RECORDED.value,
            reason=Reason.PENDING.value,
            message="",
            moves=0,
            models="[]",
            not_before=not_before,
            created_at=self._now(),
        )
        self._add(row)
        return _replan(row)

    def _not_paused(self) -> ColumnElement[bool]:
        """Return the condition that the pause of the moves does not block a replan."""
        if self.moves_pause() is None:
            return true()
        return (col(ReplanRow.trigger) == "drain") | col(ReplanRow.dry_run).is_(True)

    def _find_replan(self, replan_id: str) -> ReplanRow | None:
        return self._session.exec(select(ReplanRow).where(ReplanRow.id == replan_id)).first()

    def _of(self, ids: Collection[str]) -> Sequence[ReplanRow]:
        return self._session.exec(select(ReplanRow).where(col(ReplanRow.id).in_(tuple(ids)))).all()


def _options(row: ReplanRow) -> tuple[bool, int | None]:
    return (row.dry_run, row.max_moves)


def _replan(row: ReplanRow) -> Replan:
    found = row.model_dump(exclude={"ordinal", "models", "state", "reason", "progress"})
    progress = None if row.progress is None else decode(ReplanProgress, row.progress)
    return Replan(
        **found,
        state=ReplanState(row.state),
        reason=Reason(row.reason),
        models=tuple(plain(row.models)),
        progress=progress,
    )
