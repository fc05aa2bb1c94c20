"""Transitions and their progress."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import and_, bindparam, insert, or_, union
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, func, select

from ipnext.errors import FenceLost, InvalidInput, NotFound, Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.model.wire import decode_frozen
from ipnext.store.changes.retirements import NOT_FROZEN, RETIRES
from ipnext.store.records import ModelTransition, StateBefore, TransitionRecord
from ipnext.store.tables.changes import (
    FAILED,
    ChangeRow,
    DeploymentRow,
    PauseRow,
    RouteRow,
    RouteShareRow,
    TransitionRow,
)
from ipnext.store.tables.planning import PlacementRow
from ipnext.store.tables.registry import GenerationRow, ModelRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches, document, rows

UNDER_WAY = (TransitionState.PLANNED.value, TransitionState.RUNNING.value)
NOT_FINAL = tuple(state.value for state in ChangeState if not state.final)

CHANGES = METADATA.tables[ChangeRow.__tablename__]
GENERATIONS = METADATA.tables[GenerationRow.__tablename__]
PLACEMENTS = METADATA.tables[PlacementRow.__tablename__]
MODELS = METADATA.tables[ModelRow.__tablename__]
TRANSITIONS = METADATA.tables[TransitionRow.__tablename__]

_ONE = sa_select(*(column for column in TRANSITIONS.c if column.name != "before")).where(
    TRANSITIONS.c.id == bindparam("id")
)
_BEFORE = sa_select(TRANSITIONS.c.before).where(TRANSITIONS.c.id == bindparam("id"))
_ONE_IS = sa_update(TRANSITIONS).where(TRANSITIONS.c.id == bindparam("of_id"))
_NEW = insert(TRANSITIONS)

_OTHERS_OPEN = (
    sa_select(CHANGES.c.id)
    .join(TRANSITIONS, TRANSITIONS.c.change_id == CHANGES.c.id)
    .where(CHANGES.c.model == bindparam("model"), CHANGES.c.id != bindparam("id"), CHANGES.c.state.in_(NOT_FINAL))
    .where(TRANSITIONS.c.state != TransitionState.REFUSED.value)
)
"""Other open changes that have planned their waves. If those are done, the end of the change decides what serves."""
_OTHERS_RETIRING = sa_select(CHANGES.c.id).where(
    CHANGES.c.model == bindparam("model"), CHANGES.c.id != bindparam("id"), RETIRES
)
_OTHER_MOVER = sa_select(
    func.coalesce(_OTHERS_OPEN.limit(1).scalar_subquery(), _OTHERS_RETIRING.limit(1).scalar_subquery())
)
"""A change that moves a model in addition to one change; None if there is none."""

_FENCE = sa_select(
    sa_select(CHANGES.c.state).where(CHANGES.c.id == bindparam("id")).scalar_subquery(),
    sa_select(TRANSITIONS.c.fence).where(TRANSITIONS.c.id == bindparam("id")).scalar_subquery(),
)
"""The state of a change, and the token of its transition; None for a missing one."""

_MOVING = (
    sa_select(
        TRANSITIONS.c.model,
        TRANSITIONS.c.transition,
        MODELS.c.manifest,
        GENERATIONS.c.layout,
        PLACEMENTS.c.wishes,
        TRANSITIONS.c.before,
    )
    .join(CHANGES, CHANGES.c.id == TRANSITIONS.c.change_id)
    .join(MODELS, MODELS.c.name == TRANSITIONS.c.model)
    .join(
        GENERATIONS,
        (GENERATIONS.c.model == TRANSITIONS.c.model) & (GENERATIONS.c.number == TRANSITIONS.c.generation),
        isouter=True,
    )
    .join(PLACEMENTS, PLACEMENTS.c.model == TRANSITIONS.c.model, isouter=True)
    .where(CHANGES.c.state.in_(NOT_FINAL), TRANSITIONS.c.state.in_(UNDER_WAY), TRANSITIONS.c.model != bindparam("but"))
    .order_by(TRANSITIONS.c.ordinal)
)

_WALKED = (
    select(ChangeRow.model)
    .join(TransitionRow, col(TransitionRow.change_id) == col(ChangeRow.id))
    .where(col(ChangeRow.state).in_(NOT_FINAL), TransitionRow.state != TransitionState.REFUSED.value)
)
"""Models with an open change that has planned its waves; also if they are done, and its end is not recorded yet."""

_MOVED = union(
    _WALKED,
    select(ChangeRow.model).where(RETIRES),
)
"""Models that a change moves. Any other open change of a model waits, or has not got so far."""

_REPAIRED = select(ChangeRow.model).where(
    ChangeRow.kind == ChangeKind.REPAIR.value, col(ChangeRow.state).in_(NOT_FINAL)
)
"""Models with an open repair."""

_FROZEN = select(ChangeRow.model).where(
    ChangeRow.state == ChangeState.RUNNING.value, ChangeRow.reason == Reason.FROZEN.value
)
_PROCEEDS = select(ChangeRow.model).where(
    col(ChangeRow.state).in_(NOT_FINAL),
    or_(
        and_(col(ChangeRow.state) == ChangeState.RUNNING.value, NOT_FROZEN),
        and_(col(ChangeRow.model).not_in(_FROZEN), col(ChangeRow.model).not_in(select(PauseRow.model))),
    ),
)
"""Models with an open change that waits neither for a freeze nor for the end of a pause."""

_RESTS = select(TransitionRow.model).where(
    or_(
        col(TransitionRow.state) == TransitionState.PLANNED.value,
        and_(col(TransitionRow.state) == TransitionState.RUNNING.value, col(TransitionRow.rests)),
    )
)
"""Models whose transition is between two steps, or has not begun."""

_SETTLED = or_(col(ModelRow.name).not_in(_MOVED), col(ModelRow.name).in_(_RESTS))

_LATER = CHANGES.alias()
_LAST = (
    sa_select(func.max(_LATER.c.sequence))
    .where(_LATER.c.model == CHANGES.c.model, _LATER.c.state.not_in(NOT_FINAL))
    .scalar_subquery()
)
_UNREPAIRED = (
    sa_select(CHANGES.c.model)
    .where(FAILED, CHANGES.c.kind == ChangeKind.REPAIR.value, CHANGES.c.sequence == _LAST)
    .where(CHANGES.c.model.not_in(_MOVED), CHANGES.c.model.not_in(_REPAIRED))
    .order_by(CHANGES.c.model)
)
"""By the index of failed changes: the cost follows the number of failed repairs, not the number of changes."""


class Transitions(UnitOfWork):
    """Transitions of one model each."""

    def save_transition(self, record: TransitionRecord, *, before: StateBefore | None = None) -> TransitionRecord:
        """Store a transition; the same id again replaces it unless it has begun. Returns the stored one.

        Raises NotFound. `before` is kept until the transition is closed.
        """
        self._writing(record.model)
        self._check_known(record.model)
        known = self.find_transition(record.id)
        told = _transition_columns(record) | {"before": None if before is None else document(before)}
        if known is None:
            self._write(_NEW, id=record.id, created_at=record.created_at, **told)
            return record
        if known.state is not TransitionState.PLANNED or known.waves_done:
            return known
        self._write(_ONE_IS, of_id=record.id, **told)
        return record.model_copy(update={"created_at": known.created_at})

    def state_before(self, transition_id: str) -> StateBefore | None:
        """Return the desired state when a transition was planned; None if none is kept."""
        found = self._run(_BEFORE, id=transition_id).scalar()
        return None if found is None else decode_frozen(StateBefore, found)

    def transition(self, transition_id: str) -> TransitionRecord:
        """Return one transition. Raises NotFound."""
        found = self.find_transition(transition_id)
        if found is None:
            msg = f"transition {transition_id!r} is not known"
            raise NotFound(msg)
        return found

    def transitions(self, model: str, *, limit: int = 20) -> tuple[TransitionRecord, ...]:
        """Return a model's transitions, newest first. NotFound if the model is unknown."""
        self._model_row(model)
        query = select(TransitionRow).where(TransitionRow.model == model).order_by(col(TransitionRow.ordinal).desc())
        return tuple(_transition(row) for row in self._session.exec(query.limit(rows(limit))))

    def settled_generations(self, models: Collection[str]) -> Mapping[str, int | None]:
        """Map each model to the last generation of its users: of a transition that is done, else the serving one.

        A transition is done shortly before its change is, and only then does its generation count as serving. Unknown
        models are left out.
        """
        serving = select(ModelRow.name, ModelRow.serving_generation)
        done = select(TransitionRow.model, TransitionRow.generation).join(
            ChangeRow, col(ChangeRow.id) == col(TransitionRow.change_id)
        )
        done = done.where(TransitionRow.state == TransitionState.DONE.value, col(ChangeRow.state).in_(NOT_FINAL))
        done = done.order_by(col(TransitionRow.ordinal))
        found: dict[str, int | None] = {}
        for some in batches(models):
            found.update(self._session.exec(serving.where(self._among(col(ModelRow.name), some))).all())
            found.update(self._session.exec(done.where(self._among(col(TransitionRow.model), some))).all())
        return found

    def settled_models(self) -> frozenset[str]:
        """Return all models whose regions shall hold what the store has, retired ones included.

        These are the models that no change moves, and those whose transition is between two steps.
        """
        return frozenset(self._session.exec(select(ModelRow.name).where(_SETTLED)))

    def is_settled(self, model: str) -> bool:
        """Check whether the model is one of those."""
        return self._session.exec(select(ModelRow.name).where(ModelRow.name == model, _SETTLED)).first() is not None

    def is_moved(self, model: str) -> bool:
        """Check whether an open change moves the model.

        It has planned its waves, or retires the model and waits for no freeze.
        """
        query = select(ModelRow.name).where(ModelRow.name == model, col(ModelRow.name).in_(_MOVED))
        return self._session.exec(query).first() is not None

    def models_astray(self, *, but: Collection[str] = ()) -> tuple[str, ...]:
        """Return, by name, the models that a route table sends to a generation which does not serve.

        No change moves them.

        Tables of the regions `but` do not count.
        """
        query = select(ModelRow.name).join(RouteShareRow, col(RouteShareRow.model) == col(ModelRow.name)).distinct()
        query = query.where(col(ModelRow.serving_generation).is_not(None), RouteShareRow.fraction > 0)
        query = query.where(col(RouteShareRow.generation) != col(ModelRow.serving_generation))
        if but:
            query = query.where(col(RouteShareRow.region).not_in(sorted(but)))
        return tuple(sorted(self._session.exec(query.where(col(ModelRow.name).not_in(_MOVED)))))

    def models_unrepaired(self) -> tuple[str, ...]:
        """Return, by name, the models that no change moves and whose newest ended change is a failed repair."""
        return tuple(self._run(_UNREPAIRED).scalars())

    def models_unserved(self) -> tuple[str, ...]:
        """Return the models without serving generation that still have routes or replicas, by name.

        Without an open change, or with one that waits for a freeze or for the end of a pause: it has placed nothing
        yet. Tables that only refuse users do not count as routes.
        """
        routed = select(RouteRow.model).where(col(RouteRow.refuses).is_(False))
        held = select(DeploymentRow.model)
        query = select(ModelRow.name).where(col(ModelRow.serving_generation).is_(None))
        query = query.where(col(ModelRow.name).in_(routed) | col(ModelRow.name).in_(held))
        return tuple(sorted(self._session.exec(query.where(col(ModelRow.name).not_in(_PROCEEDS)))))

    def moving_models(self, *, but: str) -> tuple[ModelTransition, ...]:
        """Return, for every model except one, its newest transition that may still add replicas, by model.

        As JSON: a caller that already knows a document need not parse it.
        """
        newest = {row.model: ModelTransition._make(row) for row in self._run(_MOVING, but=but)}
        return tuple(newest[model] for model in sorted(newest))

    def find_transition(self, transition_id: str) -> TransitionRecord | None:
        """Return one transition; None if there is none of that id."""
        return self._once(("transition", transition_id), lambda: _decode_row(self._run(_ONE, id=transition_id).first()))

    def check_only_mover(self, model: str, change_id: str) -> None:
        """Check that no other change is moving the model before a change begins to move it.

        Raises:
            Unavailable: another open change has planned its waves, or another retirement runs. It ends later.
        """
        moving = self._run(_OTHER_MOVER, model=model, id=change_id).scalar()
        if moving is not None:
            msg = (
                f"change {moving!r} still moves model {model!r}; change {change_id!r} begins to move when "
                "that has ended"
            )
            raise Unavailable(msg)

    def check_fence(self, change_id: str, fence: int = 0) -> None:
        """Check that a run may still write: it must be the one that moves its model.

        Raises:
            FenceLost: the change has ended, or another run has taken its transition over.
        """
        found: Any = self._run(_FENCE, id=change_id).one()
        state, current = found[0], found[1]
        if state is not None and ChangeState(state).final:
            msg = f"change {change_id!r} has ended as {state}; a run of it writes nothing more"
            raise FenceLost(msg)
        if current is not None and current != fence:
            msg = (
                f"transition {change_id!r} was taken over (token {current}); "
                f"the run with token {fence} writes nothing more"
            )
            raise FenceLost(msg)

    def take_over_transition(self, transition_id: str, *, fence: int) -> TransitionRecord:
        """Raise the fencing token from `fence`, so that runs with that token write nothing more.

        Raises:
            NotFound: no such transition.
            Unavailable: the token has changed since; read it again.
        """
        known = self.transition(transition_id)
        self._writing(known.model)
        if known.fence != fence:
            msg = (
                f"transition {transition_id!r} has token {known.fence}, not {fence}: another run took it over meanwhile"
            )
            raise Unavailable(msg)
        self._write(_ONE_IS, of_id=transition_id, fence=fence + 1)
        return known.model_copy(update={"fence": fence + 1})

    def close_transition(self, transition_id: str, *, done: bool, message: str = "") -> None:
        """End an open transition, and forget the state before it.

        An ended one keeps its result; a missing one is ignored.
        """
        known = self.find_transition(transition_id)
        if known is None:
            return
        self._writing(known.model)
        said: dict[str, Any] = {"before": None}
        if known.is_open:
            said |= {"state": TransitionState.DONE if done else TransitionState.ROLLED_BACK, "message": message}
        self._write(_ONE_IS, of_id=transition_id, **said)

    def advance_transition(
        self,
        transition_id: str,
        *,
        waves_done: int | None = None,
        state: TransitionState | None = None,
        message: str | None = None,
        rests: bool | None = None,
    ) -> TransitionRecord:
        """Write the progress of a transition; fields that are None stay. NotFound; InvalidInput beyond its waves."""
        known = self.transition(transition_id)
        self._writing(known.model)
        waves = len(known.transition.waves)
        if waves_done is not None and not 0 <= waves_done <= waves:
            msg = f"waves_done: transition {transition_id!r} has {waves} waves, got {waves_done}"
            raise InvalidInput(msg, field="waves_done", value=waves_done)
        told = {"waves_done": waves_done, "state": state, "message": message, "rests": rests}
        said = {field: value for field, value in told.items() if value is not None and value != getattr(known, field)}
        if said:
            self._write(_ONE_IS, of_id=transition_id, **said)
        return known.model_copy(update=said)


def _transition_columns(record: TransitionRecord) -> dict[str, Any]:
    return {
        "model": record.model,
        "change_id": record.change_id,
        "generation": record.generation,
        "transition": document(record.transition),
        "state": record.state.value,
        "waves_done": record.waves_done,
        "message": record.message,
        "fence": record.fence,
        "revision": record.revision,
        "rests": record.rests,
    }


def _decode_row(row: Any) -> TransitionRecord | None:
    return None if row is None else _transition(row)


def _transition(row: Any) -> TransitionRecord:
    return TransitionRecord(
        id=row.id,
        model=row.model,
        change_id=row.change_id,
        generation=row.generation,
        transition=decode_frozen(Transition, row.transition),
        state=TransitionState(row.state),
        waves_done=row.waves_done,
        message=row.message,
        created_at=row.created_at,
        fence=row.fence,
        revision=row.revision,
        rests=row.rests,
    )
