"""Pages of every list, newest first unless stated otherwise, each read through an index from its cursor on."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy import select as sa_select
from sqlmodel import col, func, or_, select, tuple_

from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.regions.drain import Drain
from ipnext.model.lifecycle.replans.replan import Replan
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.profile import StoredProfile
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.store.changes.changes import _change
from ipnext.store.changes.drains import _drain
from ipnext.store.changes.events import _event
from ipnext.store.changes.freezes import _freeze
from ipnext.store.changes.transitions import _transition
from ipnext.store.paging import Page, clamp_limit, no_cursor, ordinal_of, page_of
from ipnext.store.planning.plans import _LINE, Plans
from ipnext.store.planning.plans import _entry as _plan_entry
from ipnext.store.planning.replans import _replan
from ipnext.store.records import Event, FreezeRecord, ModelRecord, PlanEntry, SnapshotHold, TransitionRecord
from ipnext.store.registry.denials import read_denial
from ipnext.store.registry.generations import read_generation
from ipnext.store.registry.models import Models, _model
from ipnext.store.registry.profiles import Profiles, _profile
from ipnext.store.registry.retention import _hold
from ipnext.store.registry.snapshots import read_snapshot
from ipnext.store.tables.changes import ChangeRow, DrainRow, EventRow, FreezeRow, TransitionRow
from ipnext.store.tables.planning import PlanRow, ReplanRow
from ipnext.store.tables.registry import (
    DenialRow,
    GenerationRow,
    ModelRow,
    ProfileRow,
    SnapshotHoldRow,
    SnapshotRow,
)
from ipnext.store.tables.row import METADATA

_OPEN = tuple(state.value for state in ChangeState if not state.final)

MOST_SUSPECTS = 10_000
"""Most names that one statement takes in addition to a filter."""


class PagedLists(Models, Profiles, Plans):
    """Lists by keyset: the cost of a page depends on its length, not on the length of the list."""

    def model_page(  # noqa: PLR0913 - each is a filter
        self,
        *,
        after: str | None = None,
        limit: int = 50,
        owner: str | None = None,
        ready: bool | None = None,
        search: str | None = None,
        suspects: Collection[str] = (),
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> Page[ModelRecord]:
        """Return models that are not retired and have these labels, by name.

        `ready` filters by the recorded condition; `suspects` are models that `ready=False` returns in any case.
        `search` is a part of the name.
        """
        query = select(ModelRow).where(col(ModelRow.retired).is_(False), *self._has_visible_owner())
        if after is not None:
            query = query.where(col(ModelRow.name) > after)
        query = query.where(*self._has_labels("Model", col(ModelRow.name), labels))
        if owner is not None:
            query = query.where(ModelRow.owner == owner)
        if search:
            query = query.where(col(ModelRow.name).contains(search, autoescape=True))
        if ready is not None:
            query = query.where(col(ModelRow.ready).is_(True) if ready else _unready(suspects))
        found = self._session.exec(query.order_by(col(ModelRow.name)).limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.name, value=_model)

    def unready_models(self, *, suspects: Collection[str] = (), limit: int = 50) -> tuple[str, ...]:
        """Return the first names of models that are recorded as not ready, or are suspects; none that is retired."""
        query = select(ModelRow.name).where(
            col(ModelRow.retired).is_(False), _unready(suspects), *self._has_visible_owner()
        )
        return tuple(self._session.exec(query.order_by(col(ModelRow.name)).limit(clamp_limit(limit))))

    def change_page(
        self, model: str | None = None, *, after: str | None = None, limit: int = 50, state: ChangeState | None = None
    ) -> Page[Change]:
        """Return the changes of a model, or of all. NotFound for an unknown model."""
        ordinal, query = ordinal_of(after), select(ChangeRow)
        if state is not None:
            query = query.where(ChangeRow.state == state.value)
        if model is None:
            query = query.where(*self._is_of_visible_owner(col(ChangeRow.model)))
            query = query if ordinal is None else query.where(col(ChangeRow.ordinal) < ordinal)
            query = query.order_by(col(ChangeRow.ordinal).desc())
            key: Callable[[ChangeRow], object] = lambda row: row.ordinal  # noqa: E731
        else:
            self._model_row(model)
            query = query.where(ChangeRow.model == model)
            query = query if ordinal is None else query.where(col(ChangeRow.sequence) < ordinal)
            query = query.order_by(col(ChangeRow.sequence).desc())
            key = lambda row: row.sequence  # noqa: E731
        found = self._session.exec(query.limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=key, value=_change)

    def generation_page(self, model: str, *, after: str | None = None, limit: int = 50) -> Page[Generation]:
        """Return the generations of a model. Raises NotFound."""
        self._model_row(model)
        query, number = select(GenerationRow).where(GenerationRow.model == model), ordinal_of(after)
        query = query if number is None else query.where(col(GenerationRow.number) < number)
        found = self._session.exec(query.order_by(col(GenerationRow.number).desc()).limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.number, value=read_generation)

    def snapshot_page(
        self, model: str, *, part: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[Snapshot]:
        """Return the snapshots of a model, or of one part, by part, the newest of each part first. Raises NotFound."""
        self._model_row(model)
        query = select(SnapshotRow).where(SnapshotRow.model == model)
        query = query if part is None else query.where(SnapshotRow.part == part)
        if after is not None:
            name, slash, number = after.rpartition("/")
            before = ordinal_of(number)
            if not slash or before is None:
                raise no_cursor(after)
            older = (col(SnapshotRow.part) == name) & (col(SnapshotRow.number) < before)
            query = query.where(or_(col(SnapshotRow.part) > name, older))
        query = query.order_by(col(SnapshotRow.part), col(SnapshotRow.number).desc()).limit(clamp_limit(limit) + 1)
        found = self._session.exec(query).all()
        return page_of(found, clamp_limit(limit), key=lambda row: f"{row.part}/{row.number}", value=read_snapshot)

    def hold_page(self, *, model: str | None = None, after: str | None = None, limit: int = 50) -> Page[SnapshotHold]:
        """Return the holds of a model, or of all, by model, part and number."""
        of = SnapshotHoldRow
        query = select(of).where(*self._is_of_visible_owner(col(of.model)))
        query = query if model is None else query.where(of.model == model)
        if after is not None:
            query = query.where(tuple_(col(of.model), col(of.part), col(of.number)) > tuple_(*_place(after)))
        query = query.order_by(col(of.model), col(of.part), col(of.number)).limit(clamp_limit(limit) + 1)
        found = self._session.exec(query).all()
        return page_of(found, clamp_limit(limit), key=lambda row: f"{row.model}/{row.part}/{row.number}", value=_hold)

    def transition_page(self, model: str, *, after: str | None = None, limit: int = 20) -> Page[TransitionRecord]:
        """Return the transitions of a model. Raises NotFound."""
        self._model_row(model)
        return self._by_ordinal(TransitionRow, after, limit, _transition, TransitionRow.model == model)

    def event_page(self, model: str | None = None, *, after: str | None = None, limit: int = 100) -> Page[Event]:
        """Return the events of a model, or of all. Raises NotFound.

        Events of the fleet are only for callers that may see all models.
        """
        if model is None:
            return self._by_ordinal(EventRow, after, limit, _event, *self._is_of_visible_owner(col(EventRow.model)))
        self._model_row(model)
        return self._by_ordinal(EventRow, after, limit, _event, EventRow.model == model)

    def events_since(self, ordinal: int, *, limit: int) -> tuple[tuple[int, Event], ...]:
        """Return events after an ordinal with theirs, oldest first."""
        query = select(EventRow).where(col(EventRow.ordinal) > ordinal).order_by(col(EventRow.ordinal))
        return tuple((row.ordinal or 0, _event(row)) for row in self._session.exec(query.limit(clamp_limit(limit))))

    def newest_event(self) -> int:
        """Return the highest ordinal of an event, 0 before the first."""
        return self._session.exec(select(func.max(EventRow.ordinal))).one() or 0

    def plan_page(self, *, after: str | None = None, limit: int = 20, fleet_only: bool = False) -> Page[PlanEntry]:
        """Return the entries of plans, without documents."""
        where: list[ColumnElement[bool]] = [col(PlanRow.scope).is_(None)] if fleet_only else []
        where += [or_(col(PlanRow.scope).is_(None), each) for each in self._is_of_visible_owner(col(PlanRow.scope))]
        page: Page[PlanRow] = self._by_ordinal(PlanRow, after, limit, lambda row: row, *where, options=_LINE)
        held = self._holding([row.id for row in page.items])
        return page.map(lambda row: _plan_entry(row, has_documents=row.id in held))

    def drain_page(self, region: str | None = None, *, after: str | None = None, limit: int = 20) -> Page[Drain]:
        """Return the drains of a region, or of all, including those that are over."""
        where = () if region is None else (DrainRow.region == region,)
        return self._by_ordinal(DrainRow, after, limit, _drain, *where)

    def replan_page(self, *, after: str | None = None, limit: int = 20) -> Page[Replan]:
        """Return replans."""
        return self._by_ordinal(ReplanRow, after, limit, _replan)

    def profile_page(
        self, model: str, part: str, snapshot: int, *, after: str | None = None, limit: int = 50
    ) -> Page[StoredProfile]:
        """Return the measurements of one snapshot, in the order of recording, the last first. Raises NotFound."""
        self.snapshot(model, part, snapshot)
        of = (ProfileRow.model == model, ProfileRow.part == part, ProfileRow.snapshot == snapshot)
        return self._by_ordinal(ProfileRow, after, limit, _profile, *of)

    def freeze_page(self, *, after: str | None = None, limit: int = 50) -> Page[FreezeRecord]:
        """Return freezes by name."""
        query = select(FreezeRow).order_by(col(FreezeRow.name))
        query = query if after is None else query.where(col(FreezeRow.name) > after)
        found = self._session.exec(query.limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.name, value=_freeze)

    def denial_page(self, *, after: str | None = None, limit: int = 50) -> Page[Denial]:
        """Return denials, newest first."""
        query = select(DenialRow).where(col(DenialRow.ended_at).is_(None)).order_by(col(DenialRow.ordinal).desc())
        begin = ordinal_of(after)
        query = query if begin is None else query.where(col(DenialRow.ordinal) < begin)
        found = self._session.exec(query.limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.ordinal, value=read_denial)

    def change_counts(self, since: datetime) -> Mapping[ChangeState, int]:
        """Count changes by state: all that are open, and those of the ended ones that were recorded after `since`."""
        counted = (
            select(ChangeRow.state, func.count())
            .where(*self._is_of_visible_owner(col(ChangeRow.model)))
            .group_by(ChangeRow.state)
        )
        final = [state.value for state in ChangeState if state.final]
        unfinished = self._session.exec(counted.where(col(ChangeRow.state).in_(_OPEN)))
        ended = self._session.exec(counted.where(col(ChangeRow.created_at) > since, col(ChangeRow.state).in_(final)))
        return {ChangeState(state): count for found in (unfinished, ended) for state, count in found}

    def run_durations(self, *, among: int) -> Mapping[tuple[str, str, str], float]:
        """Map (model, kind, state) to the seconds from record to end of the newest such change.

        It is the newest among those recorded last.
        """
        row = METADATA.tables[ChangeRow.__tablename__].c
        newest = sa_select(row.model, row.kind, row.state, row.created_at, row.finished_at)
        newest = (
            newest.where(*self._is_of_visible_owner(row.model)).order_by(row.ordinal.desc()).limit(clamp_limit(among))
        )
        found = self._connection.execute(newest).all()
        return {
            (model, kind, state): (finished - created).total_seconds()
            for model, kind, state, created, finished in reversed(found)
            if finished is not None
        }

    def _by_ordinal(
        self,
        table: Any,
        after: str | None,
        limit: int,
        value: Callable[[Any], Any],
        *where: Any,
        options: tuple[Any, ...] = (),
    ) -> Page[Any]:
        """Return a page of a table in the order of recording, the last first."""
        query, ordinal = select(table).options(*options).where(*where), ordinal_of(after)
        query = query if ordinal is None else query.where(col(table.ordinal) < ordinal)
        found = self._session.exec(query.order_by(col(table.ordinal).desc()).limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.ordinal, value=value)


def _unready(suspects: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a model is recorded as not ready, or is among the suspects."""
    recorded = col(ModelRow.ready).is_(False)
    return or_(recorded, col(ModelRow.name).in_(sorted(suspects)[:MOST_SUSPECTS])) if suspects else recorded


def _place(after: str) -> tuple[str, str, int]:
    model, _, rest = after.partition("/")
    part, slash, number = rest.partition("/")
    if not slash or not number.isascii() or not number.isdecimal() or len(number) > 18:
        raise no_cursor(after)
    return model, part, int(number)
