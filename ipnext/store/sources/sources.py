"""Sources of models: their settings, polls and pauses."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import func, update
from sqlmodel import col, select

from ipnext.errors import Conflict, NotFound
from ipnext.model.manifest.sources import PromotionRule, SourceSpec
from ipnext.model.registry.sources import FoundVersion, Reach, VersionState
from ipnext.model.value import Value, digest_of
from ipnext.model.wire import decode
from ipnext.store.paging import Page, clamp_limit, no_cursor, page_of
from ipnext.store.records import SourceRecord
from ipnext.store.registry.models import Models
from ipnext.store.tables.registry import ModelRow, SourceRow, SourceVersionRow
from ipnext.store.unit_of_work import batches, document, read_fields

STREAM_DIGITS: Final = 16

NOTED_EVERY: Final = timedelta(seconds=30)
"""A poll without news is written this seldom."""

PUSHED_SECONDS: Final = 3600.0
"""Interval of the polls of a source to which versions are pushed: its watch is woken for each."""

STALE_INTERVALS: Final = 3
"""Intervals without a poll after which a watch may be gone."""

LONGEST_MESSAGE: Final = 2000


class WatchedSource(Value):
    """A source of a manifest, with the system in which its stream is; that of a pushed one is its model."""

    spec: SourceSpec
    part: str
    upstream: str
    reach: Reach = Reach.OWNER

    @property
    def stream(self) -> str:
        """Digest of its kind, settings and part."""
        settings = self.spec.stream.model_dump(mode="json", by_alias=True)
        return digest_of({"part": self.part, self.spec.kind: settings})[:STREAM_DIGITS]


class Sources(Models):
    """The only writer of sources."""

    def put_sources(self, model: str, wanted: Sequence[WatchedSource], *, grants_end: bool = False) -> None:
        """Replace the sources of a model by those of its manifest.

        One with the same settings keeps its cursor, its pause, and what an administrator granted it. Versions of a
        source that is gone stay, so that it finds none twice if it comes back. `grants_end`: the model has another
        owner, or returns from retirement: what an administrator granted ends, and all are polled soon.
        """
        self._writing(model)
        known = {row.name: row for row in self._session.exec(select(SourceRow).where(SourceRow.model == model))}
        for source in wanted:
            row = known.pop(source.spec.name, None)
            former = None if row is None else decode(SourceSpec, row.spec).promote
            if row is None:
                row = SourceRow(model=model, name=source.spec.name, created_at=self._now(), **_of_spec(source))
            elif row.stream != source.stream:
                _set(row, {**_of_spec(source), **_INITIAL})
            elif grants_end:
                _set(row, {**_of_spec(source), "sent": False})
            elif row.spec != document(source.spec) or source.reach > row.reach:
                _set(row, {**_of_spec(source), "reach": max(row.reach, int(source.reach)), "sent": False})
            self._add(row)
            if former != source.spec.promote:
                self._judge_all(row, source.spec.promote)
        for row in known.values():
            self._session.delete(row)
        self._session.flush()

    def _judge_all(self, row: SourceRow, rule: PromotionRule) -> None:
        """Judge the versions of a source that are still to be published: the rule may be another one now."""
        of = SourceVersionRow
        query = select(of).where(of.model == row.model, of.source == row.name, of.stream == row.stream)
        for version in self._session.exec(query.where(col(of.state).in_(OPEN))):
            held = rule.describe_failure(decode(FoundVersion, version.version))
            state = (VersionState.HELD if held else VersionState.FOUND).value
            if version.state != state:
                version.state, version.message = state, held[:LONGEST_MESSAGE]
                self._session.add(version)

    def source(self, model: str, name: str) -> SourceRecord:
        """Return a source of a model. NotFound names the known ones."""
        row = self._source_row(model, name)
        return _source(row, self.owner_of(model) or "")

    def sources(self, model: str) -> tuple[SourceRecord, ...]:
        """Return the sources of a model, by name. Raises NotFound."""
        self._model_row(model)
        query = select(SourceRow).where(SourceRow.model == model).order_by(col(SourceRow.name))
        owner = self.owner_of(model) or ""
        return tuple(_source(row, owner) for row in self._session.exec(query))

    def sources_of(self, models: Collection[str]) -> tuple[SourceRecord, ...]:
        """Return the sources of several models, by model and name."""
        found = list[tuple[SourceRow, str]]()
        for some in batches(models):
            query = self._live().where(col(SourceRow.model).in_(some))
            found += self._session.exec(query.order_by(col(SourceRow.model), col(SourceRow.name))).all()
        return tuple(_source(row, owner) for row, owner in found)

    def source_page(
        self,
        *,
        model: str | None = None,
        after: str | None = None,
        limit: int = 50,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> Page[SourceRecord]:
        """Return the sources of models that are not retired and have these labels, by model and name."""
        query = self._live().where(*self._has_visible_owner())
        query = query.where(*self._has_labels("Model", col(SourceRow.model), labels))
        if model is not None:
            query = query.where(SourceRow.model == model)
        if after is not None:
            of, slash, name = after.partition("/")
            if not slash:
                raise no_cursor(after)
            same = (col(SourceRow.model) == of) & (col(SourceRow.name) > name)
            query = query.where((col(SourceRow.model) > of) | same)
        query = query.order_by(col(SourceRow.model), col(SourceRow.name)).limit(clamp_limit(limit) + 1)
        found = self._session.exec(query).all()
        return page_of(
            found,
            clamp_limit(limit),
            key=lambda pair: f"{pair[0].model}/{pair[0].name}",
            value=lambda pair: _source(*pair),
        )

    def watched_sources(self, kind: str, upstream: str) -> tuple[SourceRecord, ...]:
        """Return the sources of one upstream system, paused ones included, of models that are not retired."""
        query = self._live().where(SourceRow.kind == kind, SourceRow.upstream == upstream)
        query = query.order_by(col(SourceRow.model), col(SourceRow.name))
        return tuple(_source(row, owner) for row, owner in self._session.exec(query))

    def stale_upstreams(self) -> tuple[tuple[str, str], ...]:
        """Return kind and name of each upstream system that was not polled for STALE_INTERVALS of its interval.

        Of models that are not retired; a system whose sources are all paused counts. Its watch may be gone.
        """
        rows = (
            select(SourceRow.kind, SourceRow.upstream, func.max(SourceRow.polled_at), func.min(SourceRow.every_seconds))
            .join(ModelRow, _MODEL_OF_SOURCE)
            .where(col(ModelRow.retired).is_(False))
            .group_by(col(SourceRow.kind), col(SourceRow.upstream))
        )
        now = self._now()
        found = [
            (kind, upstream)
            for kind, upstream, polled, every in self._session.exec(rows)
            if polled is None or now - polled > _longest_pause(every)
        ]
        return tuple(sorted(found))

    def unsent_upstreams(self, limit: int = 100) -> tuple[tuple[str, str], ...]:
        """Return the upstream systems with a request that the workflow engine does not know of."""
        query = select(SourceRow.kind, SourceRow.upstream).where(col(SourceRow.sent).is_(False)).distinct().limit(limit)
        return tuple(sorted((kind, upstream) for kind, upstream in self._session.exec(query)))

    def mark_sent(self, kind: str, upstream: str) -> None:
        """Note that all requests for an upstream system are about to be sent to the workflow engine.

        Call it before: a request that is recorded later is sent again.
        """
        self._writing_any()
        self._mark_sent(kind, upstream, sent=True)

    def mark_unsent(self, kind: str, upstream: str) -> None:
        """Have the requests for an upstream system sent again, because the workflow engine did not take them."""
        self._writing_any()
        self._mark_sent(kind, upstream, sent=False)

    def pause_source(self, model: str, name: str, *, by: str, reason: str) -> SourceRecord:
        """Pause a source; a paused one gets the newest reason. Raises NotFound."""
        self._writing(model)
        row = self._source_row(model, name)
        row.paused_by, row.paused_at, row.pause_reason = by, row.paused_at or self._now(), reason
        self._add(row)
        return self.source(model, name)

    def resume_source(self, model: str, name: str) -> SourceRecord:
        """Resume a source. Raises NotFound; Conflict if it is not paused."""
        self._writing(model)
        row = self._source_row(model, name)
        if row.paused_at is None:
            msg = f"source {name!r} of model {model!r} is not paused"
            raise Conflict(msg)
        _set(row, {"paused_by": None, "paused_at": None, "pause_reason": "", "sent": False})
        self._add(row)
        return self.source(model, name)

    def wake_source(self, model: str, name: str) -> SourceRecord:
        """Have a source polled soon. Raises NotFound."""
        self._writing(model)
        row = self._source_row(model, name)
        row.sent = False
        self._add(row)
        return self.source(model, name)

    def note_failed_poll(self, source: SourceRecord, error: str) -> int:
        """Record that a poll failed; return the number of such polls in a row. 0 if the source was changed."""
        self._writing_any()
        row = self._session.get(SourceRow, (source.model, source.name))
        if row is None or row.stream != source.stream:
            return 0
        row.failures, row.error, row.polled_at = row.failures + 1, error[:LONGEST_MESSAGE], self._now()
        self._add(row)
        return row.failures

    def _live(self) -> Any:
        query = select(SourceRow, ModelRow.owner).join(ModelRow, _MODEL_OF_SOURCE)
        return query.where(col(ModelRow.retired).is_(False))

    def _source_row(self, model: str, name: str) -> SourceRow:
        row = self._session.get(SourceRow, (model, name))
        if row is None:
            self._model_row(model)
            known = self._session.exec(select(SourceRow.name).where(SourceRow.model == model)).all()
            msg = f"model {model!r} has no source {name!r}; known: {', '.join(sorted(known)) or 'none'}"
            raise NotFound(msg)
        return row

    def _mark_sent(self, kind: str, upstream: str, *, sent: bool) -> None:
        of = (col(SourceRow.kind) == kind, col(SourceRow.upstream) == upstream)
        with self._bookkeeping():
            self._session.execute(update(SourceRow).where(*of).values(sent=sent))
            self._session.expire_all()

    def _note_poll(self, row: SourceRow, cursor: str) -> None:
        now = self._now()
        fresh = row.polled_at is not None and now - row.polled_at < NOTED_EVERY
        if cursor != row.cursor or row.failures or not fresh:
            row.cursor, row.polled_at, row.failures, row.error = cursor, now, 0, ""
            self._session.add(row)


def is_poll_overdue(source: SourceRecord, now: datetime) -> bool:
    """Return whether a source was not polled for so long that its watch may be gone."""
    every = PUSHED_SECONDS if source.spec.push is not None else source.spec.every_seconds
    return source.polled_at is not None and now - source.polled_at > _longest_pause(every)


def _longest_pause(every_seconds: float) -> timedelta:
    """Return the time without a recorded poll after which a watch may be gone."""
    return max(2 * NOTED_EVERY, STALE_INTERVALS * timedelta(seconds=every_seconds))


_MODEL_OF_SOURCE: Final = col(ModelRow.name) == col(SourceRow.model)
OPEN: Final = (VersionState.HELD.value, VersionState.FOUND.value)
"""States of versions that are still to be published."""
_INITIAL: Final = {"cursor": "", "polled_at": None, "failures": 0, "error": "", "sent": False}
"""Progress of a stream that was never polled."""


def _of_spec(source: WatchedSource) -> dict[str, Any]:
    return {
        "kind": source.spec.kind,
        "upstream": source.upstream,
        "stream": source.stream,
        "part": source.part,
        "spec": document(source.spec),
        "every_seconds": PUSHED_SECONDS if source.spec.push is not None else source.spec.every_seconds,
        "reach": int(source.reach),
    }


def _set(row: SourceRow, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, value)


def _source(row: SourceRow, owner: str) -> SourceRecord:
    given = read_fields(SourceRecord, row, but={"owner", "spec"})
    return SourceRecord(**given, owner=owner, spec=decode(SourceSpec, row.spec))
