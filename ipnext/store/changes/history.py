"""Retention of the history: events, changes, plans, replans, and versions that sources found.

A row goes once it is older than its class is kept, and not among the newest ones of its model. Rows are read through an
index, some models at a time, and deleted in small units of work.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Select, Table, and_, delete, exists, func, literal, or_, select

from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.registry.retention import Keep
from ipnext.model.registry.sources import VersionState
from ipnext.store.tables.changes import ChangeRow, CheckOverrideRow, EventRow, FreezeOverrideRow, TransitionRow
from ipnext.store.tables.planning import PlacementRow, PlanInForceRow, PlanRow, ReplanMoveRow, ReplanRow
from ipnext.store.tables.registry import SourceRow, SourceVersionRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches

HistoryKind = Literal["event", "change", "plan", "replan", "source version"]

BY_CURSOR: Final = ("mlflow", "oci", "push")
"""Kinds of sources that list no version again which is not among the newest of its stream."""

_EVENTS = METADATA.tables[EventRow.__tablename__]
_CHANGES = METADATA.tables[ChangeRow.__tablename__]
_TRANSITIONS = METADATA.tables[TransitionRow.__tablename__]
_OVERRIDES = tuple(METADATA.tables[row.__tablename__] for row in (FreezeOverrideRow, CheckOverrideRow))
_PLANS = METADATA.tables[PlanRow.__tablename__]
_IN_FORCE = METADATA.tables[PlanInForceRow.__tablename__]
_PLACEMENTS = METADATA.tables[PlacementRow.__tablename__]
_REPLANS = METADATA.tables[ReplanRow.__tablename__]
_MOVES = METADATA.tables[ReplanMoveRow.__tablename__]
_VERSIONS = METADATA.tables[SourceVersionRow.__tablename__]
_SOURCES = METADATA.tables[SourceRow.__tablename__]

_FINAL_CHANGES: Final = tuple(state.value for state in ChangeState if state.final)
_OPEN_CHANGES: Final = tuple(state.value for state in ChangeState if not state.final)
_ENDED_REPLANS: Final = tuple(state.value for state in ReplanState if state.final)
_OVER: Final = tuple(state.value for state in VersionState if state.over)


@dataclass(frozen=True, slots=True)
class HistoryShare:
    """Rows of one class that go: their number, and about the bytes of their texts."""

    count: int = 0
    size_bytes: int = 0


class History(UnitOfWork):
    """Rows of the history that are beyond their retention."""

    def history_models(self, kind: HistoryKind, after: str, *, limit: int) -> tuple[str, ...]:
        """Return the first models after a name that have rows of a class. None for replans, which are of the fleet."""
        if kind == "replan":
            return ()
        column = _model_of(kind)
        query = select(column).where(column > after).distinct().order_by(column).limit(limit)
        return tuple(self._run(query).scalars())

    def models_aged(self, kind: HistoryKind, models: Collection[str], keep: Keep, *, now: datetime) -> tuple[str, ...]:
        """Return those of these models that have a row of a class beyond its age and count, and perhaps some more."""
        if kind == "source version" or not models:
            return tuple(models)
        model, at = _model_of(kind), _TABLES[kind].c["at" if kind == "event" else "created_at"]
        query = select(model).where(self._among(model, models)).group_by(model)
        return tuple(self._run(query.having(and_(func.count() > keep.count, func.min(at) < now - keep.age))).scalars())

    def count_aged(
        self, kind: HistoryKind, models: Collection[str] | None, keep: Keep, *, now: datetime
    ) -> HistoryShare:
        """Count the rows of a class that are beyond its retention.

        Of these models; None: of the fleet. `now` minus the age is when younger rows begin.
        """
        aged = self._aged(kind, models, keep, now - keep.age).subquery()
        sums = select(func.count().label("count"), func.coalesce(func.sum(aged.c.size), 0).label("size"))
        found = self._run(sums.select_from(aged)).mappings().one()
        return HistoryShare(int(found["count"]), int(found["size"]))

    def aged_rows(
        self, kind: HistoryKind, models: Collection[str] | None, keep: Keep, *, now: datetime, limit: int
    ) -> Mapping[int, int]:
        """Map the ordinals of rows beyond the retention, as `count_aged`, to their bytes; the oldest `limit`."""
        aged = self._aged(kind, models, keep, now - keep.age).subquery()
        query = select(aged.c.ordinal, aged.c.size).order_by(aged.c.ordinal).limit(limit)
        return {row.ordinal: int(row.size or 0) for row in self._run(query)}

    def delete_aged(self, kind: HistoryKind, ordinals: Collection[int]) -> frozenset[int]:
        """Delete rows that `aged_rows` returned, and return those that were there, and are not needed since then.

        The transitions and overrides of a change go with it.
        """
        self._writing_any()
        table, found = _TABLES[kind], set[int]()
        guards = _GUARDS.get(kind, ())
        with self._bookkeeping():
            for some in batches(ordinals):
                if kind == "change":
                    self._delete_of_changes(some)
                gone = delete(table).where(table.c.ordinal.in_(some), *guards).returning(table.c.ordinal)
                found |= set(self._run(gone).scalars())
        return frozenset(found)

    def _delete_of_changes(self, ordinals: Collection[int]) -> None:
        ids = list(self._run(select(_CHANGES.c.id).where(_CHANGES.c.ordinal.in_(sorted(ordinals)))).scalars())
        self._run(delete(_TRANSITIONS).where(_TRANSITIONS.c.change_id.in_(ids)))
        for table in _OVERRIDES:
            self._run(delete(table).where(table.c.change_id.in_(ids)))

    def _aged(self, kind: HistoryKind, models: Collection[str] | None, keep: Keep, before: datetime) -> Select[Any]:
        """Return the query of ordinal and size of the rows of a class that are beyond its retention."""
        if kind == "event":
            return self._aged_events(models, keep, before)
        if kind == "change":
            return self._aged_changes(models or (), keep, before)
        if kind == "plan":
            return self._aged_plans(models, keep, before)
        if kind == "replan":
            return _aged_replans(keep, before)
        return self._aged_versions(models or (), keep, before)

    def _aged_events(self, models: Collection[str] | None, keep: Keep, before: datetime) -> Select[Any]:
        of = _EVENTS.c.model.is_(None) if models is None else self._among(_EVENTS.c.model, models)
        ranked = select(
            _EVENTS.c.ordinal, _EVENTS.c.at, _size(_EVENTS.c.message, _EVENTS.c.detail), _rank(_EVENTS, _EVENTS.c.model)
        )
        found = ranked.where(of).subquery()
        return select(found.c.ordinal, found.c.size).where(found.c.rank > keep.count, found.c.at < before)

    def _aged_changes(self, models: Collection[str], keep: Keep, before: datetime) -> Select[Any]:
        """Return the changes that have ended, but for the newest of each kind and those that stopped another one."""
        of = _CHANGES.c
        ranked = select(
            *(of.ordinal, of.id, of.model, of.state, of.created_at),
            _size(of.message),
            _rank(_CHANGES, of.model),
            func.row_number().over(partition_by=(of.model, of.kind), order_by=of.sequence.desc()).label("of_kind"),
        )
        found = ranked.where(self._among(of.model, models)).subquery()
        other = _CHANGES.alias("other")
        stopped = exists().where(other.c.model == found.c.model, other.c.stopped_by == found.c.id)
        return select(found.c.ordinal, found.c.size).where(
            found.c.rank > keep.count,
            found.c.of_kind > 1,
            found.c.created_at < before,
            found.c.state.in_(_FINAL_CHANGES),
            ~stopped,
        )

    def _aged_plans(self, models: Collection[str] | None, keep: Keep, before: datetime) -> Select[Any]:
        """Return the plans that neither a placement nor an open change goes by, and that are not in force."""
        of = _PLANS.c
        scope = of.scope.is_(None) if models is None else self._among(of.scope, models)
        ranked = select(of.ordinal, of.id, of.created_at, _size(of.message), _rank(_PLANS, of.scope)).where(scope)
        found = ranked.subquery()
        return select(found.c.ordinal, found.c.size).where(
            found.c.rank > keep.count, found.c.created_at < before, ~_is_used(found.c.id)
        )

    def _aged_versions(self, models: Collection[str], keep: Keep, before: datetime) -> Select[Any]:
        """Return the versions that are over and will not be listed again.

        A version that its source may list again would be published again. If the source is gone, all of its versions go
        together once the last of them is old: if it comes back then, it begins like a new one.
        """
        of = _VERSIONS.c
        stream = (of.model, of.source, of.stream)
        joined = _VERSIONS.outerjoin(
            _SOURCES,
            and_(_SOURCES.c.model == of.model, _SOURCES.c.name == of.source, _SOURCES.c.stream == of.stream),
        )
        ended = func.coalesce(of.ended_at, of.found_at)
        ranked = select(
            *(of.ordinal, of.state, of.listed, _SOURCES.c.kind, ended.label("ended")),
            _size(of.version, of.message),
            func.row_number().over(partition_by=stream, order_by=of.ordinal.desc()).label("rank"),
            func.max(ended).over(partition_by=stream).label("last"),
        ).select_from(joined)
        found = ranked.where(self._among(of.model, models)).subquery()
        watched = and_(
            found.c.kind.is_not(None),
            found.c.rank > keep.count,
            found.c.state.in_(_OVER),
            found.c.ended < before,
            or_(~found.c.listed, found.c.kind.in_(BY_CURSOR)),
        )
        gone = and_(found.c.kind.is_(None), found.c.last < before)
        return select(found.c.ordinal, found.c.size).where(or_(watched, gone))


def _aged_replans(keep: Keep, before: datetime) -> Select[Any]:
    """Return the replans that have ended, and whose moves are none that are known."""
    of = _REPLANS.c
    ranked = select(
        *(of.ordinal, of.state, of.plan_id, of.created_at),
        _size(of.message, of.models, of.progress),
        func.row_number().over(order_by=of.ordinal.desc()).label("rank"),
    ).subquery()
    moving = exists().where(_MOVES.c.plan_id == ranked.c.plan_id)
    return select(ranked.c.ordinal, ranked.c.size).where(
        ranked.c.rank > keep.count, ranked.c.created_at < before, ranked.c.state.in_(_ENDED_REPLANS), ~moving
    )


_TABLES: Final[Mapping[HistoryKind, Table]] = {
    "event": _EVENTS,
    "change": _CHANGES,
    "plan": _PLANS,
    "replan": _REPLANS,
    "source version": _VERSIONS,
}


def _is_used(plan_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that something goes by a plan."""
    return or_(
        exists().where(_IN_FORCE.c.plan_id == plan_id),
        exists().where(_MOVES.c.plan_id == plan_id),
        exists().where(_CHANGES.c.state.in_(_OPEN_CHANGES), _CHANGES.c.plan_id == plan_id),
        plan_id.in_(select(_PLACEMENTS.c.plan_id)),
    )


def _may_be_listed() -> ColumnElement[bool]:
    """Return the condition that the source of a version is there, and may list it again."""
    of = _VERSIONS.c
    same = (_SOURCES.c.model == of.model, _SOURCES.c.name == of.source, _SOURCES.c.stream == of.stream)
    return and_(of.listed, exists().where(*same, _SOURCES.c.kind.not_in(BY_CURSOR)))


_GUARDS: Final[Mapping[HistoryKind, tuple[ColumnElement[bool], ...]]] = {
    "plan": (~_is_used(_PLANS.c.id),),
    "source version": (~_may_be_listed(),),
}
"""What may have come to need a row since it was read."""


def _model_of(kind: HistoryKind) -> ColumnElement[str]:
    table = _TABLES[kind]
    found: ColumnElement[str] = table.c.scope if kind == "plan" else table.c.model
    return found


def _rank(table: Table, model: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the rank of a row among those of its model, the newest first, from 1."""
    return func.row_number().over(partition_by=model, order_by=table.c.ordinal.desc()).label("rank")


def _size(*texts: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the number of characters of a row's texts."""
    total: ColumnElement[int] = literal(0)
    for text in texts:
        total += func.coalesce(func.length(text), 0)
    return total.label("size")
