"""Plans and the one in force; transitions and how far they are."""

from typing import Any

from sqlmodel import col, select

from ipnext.errors import InvalidInput, NotFound, StaleWrite
from ipnext.model.plan import Plan, PlanDiff, Problem
from ipnext.model.rollout import Transition, TransitionState
from ipnext.store.records import PlanRecord, TransitionRecord
from ipnext.store.tables import PlanInForceRow, PlanRow, TransitionRow
from ipnext.store.unit import Unit, document, rows

IN_FORCE = 1


class Plans(Unit):
    """Plans. One is in force at a time; an adopted one never changes again."""

    def save_plan(self, record: PlanRecord) -> PlanRecord:
        """Keep a plan, not yet in force; the same id again replaces it unless it was adopted. Returns what is kept."""
        self._writing(self._scope)
        row = self._find_plan(record.id)
        if row is None:
            row = PlanRow(id=record.id, adopted=False, created_at=record.created_at, **_plan_columns(record))
        elif not row.adopted:
            for name, value in _plan_columns(record).items():
                setattr(row, name, value)
        self._add(row)
        return _plan(row)

    def plan(self, plan_id: str) -> PlanRecord:
        """One plan. NotFound."""
        return _plan(self._plan_row(plan_id))

    def plans(self, *, limit: int = 20) -> tuple[PlanRecord, ...]:
        """Plans, newest first."""
        query = select(PlanRow).order_by(col(PlanRow.ordinal).desc()).limit(rows(limit))
        return tuple(_plan(row) for row in self._session.exec(query))

    def plan_in_force(self) -> PlanRecord | None:
        """The plan adopted last, none before the first."""
        row = self._session.get(PlanInForceRow, IN_FORCE)
        return None if row is None else _plan(self._plan_row(row.plan_id))

    def adopt_plan(self, plan_id: str, *, expected: str | None) -> PlanRecord:
        """Put a plan in force after `expected` (None: there was none). Adopting the one in force changes nothing.

        StaleWrite when another plan is in force than expected; NotFound.
        """
        self._writing(None)
        row = self._plan_row(plan_id)
        pointer = self._session.get(PlanInForceRow, IN_FORCE)
        current = None if pointer is None else pointer.plan_id
        if current == plan_id:
            return _plan(row)
        if current != expected:
            msg = f"plan {current!r} is in force, the write expects {expected!r}; plan again from the one in force"
            raise StaleWrite(msg)
        if pointer is None:
            pointer = PlanInForceRow(id=IN_FORCE, plan_id=plan_id, adopted_at=self._now())
        pointer.plan_id, pointer.adopted_at = plan_id, self._now()
        row.adopted = True
        self._add(row)
        self._add(pointer)
        return _plan(row)

    def _find_plan(self, plan_id: str) -> PlanRow | None:
        return self._session.exec(select(PlanRow).where(PlanRow.id == plan_id)).first()

    def _plan_row(self, plan_id: str) -> PlanRow:
        row = self._find_plan(plan_id)
        if row is None:
            msg = f"plan {plan_id!r} is not known"
            raise NotFound(msg)
        return row


class Transitions(Unit):
    """Transitions of one model each."""

    def save_transition(self, record: TransitionRecord) -> TransitionRecord:
        """Keep a transition; the same id again replaces it unless it has begun. Returns what is kept. NotFound."""
        self._writing_model(record.model)
        row = self._find_transition(record.id)
        if row is None:
            row = TransitionRow(id=record.id, created_at=record.created_at, **_transition_columns(record))
        elif row.state == TransitionState.PLANNED.value and row.waves_done == 0:
            for name, value in _transition_columns(record).items():
                setattr(row, name, value)
        self._add(row)
        return _transition(row)

    def transition(self, transition_id: str) -> TransitionRecord:
        """One transition. NotFound."""
        return _transition(self._transition_row(transition_id))

    def transitions(self, model: str, *, limit: int = 20) -> tuple[TransitionRecord, ...]:
        """A model's transitions, newest first. NotFound for an unknown model."""
        self._model_row(model)
        query = select(TransitionRow).where(TransitionRow.model == model).order_by(col(TransitionRow.ordinal).desc())
        return tuple(_transition(row) for row in self._session.exec(query.limit(rows(limit))))

    def advance_transition(
        self,
        transition_id: str,
        *,
        waves_done: int | None = None,
        state: TransitionState | None = None,
        message: str | None = None,
    ) -> TransitionRecord:
        """Write down how far a transition is; what is None stays. NotFound; InvalidInput beyond its waves."""
        row = self._transition_row(transition_id)
        self._writing(row.model)
        waves = len(_transition(row).transition.waves)
        if waves_done is not None and not 0 <= waves_done <= waves:
            msg = f"waves_done: transition {transition_id!r} has {waves} waves, got {waves_done}"
            raise InvalidInput(msg, field="waves_done", value=waves_done)
        row.waves_done = row.waves_done if waves_done is None else waves_done
        row.state = row.state if state is None else state.value
        row.message = row.message if message is None else message
        self._add(row)
        return _transition(row)

    def _find_transition(self, transition_id: str) -> TransitionRow | None:
        return self._session.exec(select(TransitionRow).where(TransitionRow.id == transition_id)).first()

    def _transition_row(self, transition_id: str) -> TransitionRow:
        row = self._find_transition(transition_id)
        if row is None:
            msg = f"transition {transition_id!r} is not known"
            raise NotFound(msg)
        return row


def _plan_columns(record: PlanRecord) -> dict[str, Any]:
    return {
        "trigger": record.trigger,
        "input_digest": record.input_digest,
        "problem": document(record.problem),
        "plan": document(record.plan),
        "diff": document(record.diff),
        "message": record.message,
    }


def _plan(row: PlanRow) -> PlanRecord:
    return PlanRecord(
        id=row.id,
        trigger=row.trigger,
        input_digest=row.input_digest,
        problem=Problem.model_validate_json(row.problem),
        plan=Plan.model_validate_json(row.plan),
        diff=PlanDiff.model_validate_json(row.diff),
        adopted=row.adopted,
        message=row.message,
        created_at=row.created_at,
    )


def _transition_columns(record: TransitionRecord) -> dict[str, Any]:
    return {
        "model": record.model,
        "change_id": record.change_id,
        "generation": record.generation,
        "transition": document(record.transition),
        "state": record.state.value,
        "waves_done": record.waves_done,
        "message": record.message,
    }


def _transition(row: TransitionRow) -> TransitionRecord:
    return TransitionRecord(
        id=row.id,
        model=row.model,
        change_id=row.change_id,
        generation=row.generation,
        transition=Transition.model_validate_json(row.transition),
        state=TransitionState(row.state),
        waves_done=row.waves_done,
        message=row.message,
        created_at=row.created_at,
    )
