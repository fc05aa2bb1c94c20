"""Changes of a model, in order. A recorded change is acknowledged and never lost."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, not_, or_
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, func, select

from ipnext import names
from ipnext.errors import Conflict, InvalidInput, NotFound
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.store.changes.retirements import RETIRES
from ipnext.store.registry.generations import Generations
from ipnext.store.tables.changes import ChangeRow, PauseRow
from ipnext.store.tables.planning import PlanRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches, rows

CHANGES = METADATA.tables[ChangeRow.__tablename__]

_ONE = sa_select(CHANGES).where(CHANGES.c.id == bindparam("id"))
_ONE_IS = sa_update(CHANGES).where(CHANGES.c.id == bindparam("of_id"))
_NEWEST = (
    sa_select(CHANGES)
    .where(CHANGES.c.model == bindparam("model"))
    .order_by(CHANGES.c.sequence.desc())
    .limit(bindparam("limit"))
)

LONGEST_ID = 200
"""Characters of a change's id."""

_ORDER: Sequence[ChangeState] = (ChangeState.RECORDED, ChangeState.QUEUED, ChangeState.RUNNING)
_TAKEN = (ChangeState.QUEUED.value, ChangeState.RUNNING.value)

_URGENT = frozenset({ChangeKind.ROLLBACK.value, ChangeKind.RETIRE.value})
"""Kinds that wait for no pause, and stop a running change of another kind."""

_PASSES_PAUSE = _URGENT | {ChangeKind.REPAIR.value}
"""Kinds that wait for no pause."""


class Changes(Generations):
    """The journal of changes. `sequence` rises by one for each model."""

    def add_change(
        self,
        model: str,
        kind: ChangeKind,
        *,
        change_id: str,
        generation: int | None = None,
        plan_id: str | None = None,
    ) -> Change:
        """Record a ROLLBACK, APPLY, MOVE or RETIRE; the same id again returns the recorded one.

        NotFound if the model, generation or plan is unknown; Conflict if the id belongs to another change; InvalidInput
        for a PUBLISH (use `publish`).
        """
        if kind is ChangeKind.PUBLISH:
            msg = "kind: a publish brings snapshots; use publish()"
            raise InvalidInput(msg, field="kind", value=kind)
        self._writing_model(model)
        recorded = self._find_recorded(model, kind, change_id)
        if recorded is not None:
            if (recorded.generation, recorded.plan_id) != (generation, plan_id):
                msg = (
                    f"change {change_id!r} is recorded with generation {recorded.generation} and plan "
                    f"{recorded.plan_id}"
                )
                raise Conflict(msg)
            return _change(recorded)
        if generation is not None:
            self._generation_row(model, generation)
        if plan_id is not None and not self._session.exec(select(PlanRow.id).where(PlanRow.id == plan_id)).first():
            msg = f"plan {plan_id!r} is not known; save it before the change that carries it out"
            raise NotFound(msg)
        return self._record(model, kind, change_id, generation=generation, plan_id=plan_id)

    def record_again(self, change: Change, *, change_id: str) -> Change:
        """Record a change of the same kind, generation and plan under another id, after all others.

        NotFound if the model is unknown.
        """
        self._writing_model(change.model)
        recorded = self._find_recorded(change.model, change.kind, change_id)
        if recorded is not None:
            return _change(recorded)
        return self._record(change.model, change.kind, change_id, generation=change.generation, plan_id=change.plan_id)

    def change(self, change_id: str) -> Change:
        """Return one change. Raises NotFound."""
        return self.find_change(change_id) or _change(self._change_row(change_id))

    def find_change(self, change_id: str) -> Change | None:
        """Return one change, None if it is not recorded."""
        return self._once(("change", change_id), lambda: _decode_row(self._run(_ONE, id=change_id).first()))

    def open_kinds(self, model: str) -> Mapping[ChangeKind, str]:
        """Map each kind to the id of the model's newest change of that kind that has not ended."""
        query = select(ChangeRow.kind, ChangeRow.id).where(ChangeRow.model == model, col(ChangeRow.state).in_(_ORDER))
        found = self._session.exec(query.order_by(col(ChangeRow.ordinal)))
        return {ChangeKind(kind): change_id for kind, change_id in found}

    def open_retirement(self, model: str) -> Change | None:
        """Return the retirement of a model that has not ended, or None. It may wait for a freeze."""
        found = self.open_kinds(model).get(ChangeKind.RETIRE)
        return None if found is None else self.change(found)

    def retirement_since(self, change: Change) -> str | None:
        """Return the id of a newer retirement of the model that is done, None if there is none."""
        query = select(ChangeRow.id).where(
            ChangeRow.model == change.model,
            ChangeRow.kind == ChangeKind.RETIRE.value,
            ChangeRow.state == ChangeState.DONE.value,
            col(ChangeRow.sequence) > change.sequence,
        )
        return self._session.exec(query.limit(1)).first()

    def changes_named(self, ids: Collection[str]) -> Mapping[str, Change]:
        """Return the known ones of these changes, by id."""
        query = select(ChangeRow)
        found = (
            row
            for some in batches(ids)
            for row in self._session.exec(query.where(self._among(col(ChangeRow.id), some)))
        )
        return {row.id: _change(row) for row in found}

    def changes(self, model: str, *, limit: int = 50) -> tuple[Change, ...]:
        """Return a model's changes, newest first. NotFound if the model is unknown."""
        found = tuple(_change(row) for row in self._run(_NEWEST, model=model, limit=rows(limit)))
        if not found:
            self._check_known(model)
        return found

    def applies(self, model: str, *, revision: int) -> tuple[Change, ...]:
        """Return the changes that move a model to a revision of its manifest, newest first."""
        base = names.apply_id(model, revision)
        query = select(ChangeRow).where(ChangeRow.model == model, ChangeRow.kind == ChangeKind.APPLY.value)
        query = query.where(or_(col(ChangeRow.id) == base, col(ChangeRow.id).startswith(f"{base}.", autoescape=True)))
        return tuple(_change(row) for row in self._session.exec(query.order_by(col(ChangeRow.sequence).desc())))

    def marked_apply(self, model: str, mark: str) -> Change | None:
        """Return the newest apply, of any revision, that a request recorded whose mark begins so."""
        query = select(ChangeRow).where(ChangeRow.model == model, ChangeRow.kind == ChangeKind.APPLY.value)
        query = query.where(col(ChangeRow.id).contains(f".{mark}", autoescape=True))
        row = self._session.exec(query.order_by(col(ChangeRow.sequence).desc()).limit(1)).first()
        return _decode_row(row)

    def has_newer(self, change: Change, kinds: Collection[ChangeKind]) -> bool:
        """Return whether a change of one of these kinds was recorded after a change of the same model."""
        query = select(ChangeRow.id).where(
            ChangeRow.model == change.model,
            col(ChangeRow.sequence) > change.sequence,
            col(ChangeRow.kind).in_([kind.value for kind in kinds]),
        )
        return self._session.exec(query.limit(1)).first() is not None

    def ended_changes(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of the changes that have ended."""
        final = tuple(state.value for state in ChangeState if state.final)
        query = select(ChangeRow.id).where(col(ChangeRow.state).in_(final))
        found = (self._session.exec(query.where(self._among(col(ChangeRow.id), some))) for some in batches(ids))
        return frozenset(change_id for each in found for change_id in each)

    def retiring_models(self) -> frozenset[str]:
        """Return the models that a retirement moves: without those whose retirement waits for a freeze."""
        return frozenset(self._session.exec(select(ChangeRow.model).where(RETIRES)))

    def frozen_models(self) -> Mapping[str, str]:
        """Map each model with a change that waits for a freeze to that change and the freeze's end."""
        query = select(ChangeRow).where(
            ChangeRow.state == ChangeState.RUNNING.value, ChangeRow.reason == Reason.FROZEN.value
        )
        return {
            row.model: f"{Reason.FROZEN}: {row.kind} {row.id} is {row.message}" for row in self._session.exec(query)
        }

    def unsubmitted_changes(self, *, limit: int = 1000, but: Collection[str] = ()) -> tuple[Change, ...]:
        """Return the first changes that no workflow has started yet, in the order of recording.

        Those of some models are left out.
        """
        query = select(ChangeRow).where(ChangeRow.state == ChangeState.RECORDED.value).order_by(col(ChangeRow.ordinal))
        if but:
            query = query.where(not_(self._among(col(ChangeRow.model), but)))
        return tuple(_change(row) for row in self._session.exec(query.limit(rows(limit))))

    def models_unsubmitted(self, models: Collection[str]) -> frozenset[str]:
        """Return those of these models that have a change which no workflow has started yet."""
        query = select(ChangeRow.model).where(ChangeRow.state == ChangeState.RECORDED.value).distinct()
        return frozenset(
            model
            for some in batches(models)
            for model in self._session.exec(query.where(self._among(col(ChangeRow.model), some)))
        )

    def open_changes(self, model: str) -> tuple[Change, ...]:
        """Return a model's changes that the workflow engine has started and that have not ended, by sequence."""
        query = select(ChangeRow).where(ChangeRow.model == model, col(ChangeRow.state).in_(_TAKEN))
        return tuple(_change(row) for row in self._session.exec(query.order_by(col(ChangeRow.sequence))))

    def find_stopped_move(self, model: str) -> Change | None:
        """Return the model's newest move if a rollback stopped it; None for any other end, or without moves."""
        query = select(ChangeRow).where(ChangeRow.model == model, ChangeRow.kind == ChangeKind.MOVE.value)
        move = self._session.exec(query.order_by(col(ChangeRow.sequence).desc()).limit(1)).first()
        by = None if move is None or move.stopped_by is None else self._find_change(move.stopped_by)
        return _change(move) if move is not None and by is not None and by.kind == ChangeKind.ROLLBACK else None

    def open_moves(self) -> tuple[Change, ...]:
        """Return the moves of all models that have not ended, in the order of recording."""
        query = select(ChangeRow).where(col(ChangeRow.state).in_(_ORDER), ChangeRow.kind == ChangeKind.MOVE.value)
        return tuple(_change(row) for row in self._session.exec(query.order_by(col(ChangeRow.ordinal))))

    def long_open_changes(self, *, seconds: float) -> tuple[Change, ...]:
        """Return, for each model, its first change recorded at least `seconds` ago that has started and not ended."""
        query = select(ChangeRow).where(col(ChangeRow.state).in_(_TAKEN))
        query = query.where(ChangeRow.created_at <= self._now() - timedelta(seconds=seconds))
        first: dict[str, ChangeRow] = {}
        for row in self._session.exec(query.order_by(col(ChangeRow.sequence))):
            first.setdefault(row.model, row)
        return tuple(_change(first[model]) for model in sorted(first))

    def changes_due(self, *, seconds: float) -> tuple[Change, ...]:
        """Return the changes, recorded at least `seconds` ago, of which a run should be open.

        Those that have begun, and of each model the first that waits if neither a begun one nor a pause blocks it: a
        rollback or retirement passes both, a repair passes pauses.
        """
        query = select(ChangeRow).where(col(ChangeRow.state).in_(_TAKEN))
        found = self._session.exec(query.order_by(col(ChangeRow.model), col(ChangeRow.sequence))).all()
        begun = [row for row in found if row.state == ChangeState.RUNNING.value]
        passing = dict.fromkeys(self._session.exec(select(PauseRow.model)), _PASSES_PAUSE)
        for row in begun:
            passing[row.model] = frozenset() if row.kind in _URGENT else passing.get(row.model, _URGENT) & _URGENT
        first: dict[str, ChangeRow] = {}
        for row in found:
            waits = row.state == ChangeState.QUEUED.value
            if waits and (row.model not in passing or row.kind in passing[row.model]):
                first.setdefault(row.model, row)
        since = self._now() - timedelta(seconds=seconds)
        return tuple(_change(row) for row in (*begun, *first.values()) if row.created_at <= since)

    def count_unsubmitted(self) -> int:
        """Count the changes that no workflow has started yet."""
        query = select(func.count()).select_from(ChangeRow).where(ChangeRow.state == ChangeState.RECORDED.value)
        return self._session.exec(query).one()

    def update_change(
        self,
        change_id: str,
        *,
        state: ChangeState,
        reason: Reason | None = None,
        message: str | None = None,
        run_id: str | None = None,
        stopped_by: str | None = None,
    ) -> Change:
        """Move a change forward; fields that are None stay. Raises NotFound.

        `stopped_by` is the change that preempted it, recorded with its end. A change only moves forward: a late update
        (to a final change, or from RUNNING back to QUEUED) is ignored, and the present change is returned.
        """
        known = self.change(change_id)
        self._writing(known.model)
        before = known.state
        late = not state.final and _ORDER.index(state) < _ORDER.index(before) if not before.final else True
        if late:
            return known
        said = {
            "state": state,
            "reason": known.reason if reason is None else reason,
            "message": known.message if message is None else message,
            "run_id": known.run_id if run_id is None else run_id,
            "finished_at": self._now() if state.final else None,
        }
        self._write(_ONE_IS, of_id=change_id, stopped_by=stopped_by, **said)
        return known.model_copy(update=said)

    def _change_row(self, change_id: str) -> ChangeRow:
        row = self._find_change(change_id)
        if row is None:
            msg = f"change {change_id!r} is not known"
            raise NotFound(msg)
        return row

    def _find_change(self, change_id: str) -> ChangeRow | None:
        return self._session.exec(select(ChangeRow).where(ChangeRow.id == change_id)).first()

    def _find_recorded(self, model: str, kind: ChangeKind, change_id: str) -> ChangeRow | None:
        """Return the change of that id, if any. Conflict if it is another model's or of another kind."""
        if not 0 < len(change_id) <= LONGEST_ID:
            msg = f"changeId: must have 1 to {LONGEST_ID} characters, got {len(change_id)}"
            raise InvalidInput(msg, field="changeId", value=change_id[:LONGEST_ID])
        row = self._find_change(change_id)
        if row is not None and (row.model, row.kind) != (model, kind.value):
            taken = f"a {row.kind} of model {model!r}" if row.model == model else "another change"
            msg = f"changeId: {change_id!r} is already {taken}; choose another id"
            raise Conflict(msg)
        return row

    def _record(
        self,
        model: str,
        kind: ChangeKind,
        change_id: str,
        *,
        generation: int | None = None,
        plan_id: str | None = None,
    ) -> Change:
        last = self._session.exec(select(func.max(ChangeRow.sequence)).where(ChangeRow.model == model)).one()
        row = ChangeRow(
            id=change_id,
            model=model,
            kind=kind.value,
            sequence=(last or 0) + 1,
            generation=generation,
            plan_id=plan_id,
            state=ChangeState.RECORDED.value,
            message="",
            created_at=self._now(),
        )
        self._add(row)
        return _change(row)


def _decode_row(row: Any) -> Change | None:
    return None if row is None else _change(row)


def _change(row: Any) -> Change:
    return Change(
        id=row.id,
        model=row.model,
        kind=ChangeKind(row.kind),
        sequence=row.sequence,
        generation=row.generation,
        plan_id=row.plan_id,
        state=ChangeState(row.state),
        reason=None if row.reason is None else Reason(row.reason),
        message=row.message,
        run_id=row.run_id,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
