"""Sources of models and the versions that they found. A version is recorded in the unit that advances the cursor."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import func, update
from sqlmodel import col, select

from ipnext.errors import Conflict, NotFound
from ipnext.model.manifest.sources import PromotionRule, SourceSpec
from ipnext.model.registry.sources import FoundVersion, Listing, Reach, VersionState, shrink
from ipnext.model.value import Value, digest_of
from ipnext.model.wire import decode
from ipnext.store.paging import Page, clamp_limit, no_cursor, ordinal_of, page_of
from ipnext.store.records import SourceRecord, VersionRecord
from ipnext.store.registry.models import Models
from ipnext.store.tables.registry import ModelRow, SourceRow, SourceVersionRow
from ipnext.store.unit_of_work import batches, document, read_fields

STREAM_DIGITS: Final = 16

RECORDED_AT_ONCE: Final = 500
"""New versions that one unit of work records."""

NOTED_EVERY: Final = timedelta(seconds=30)
"""A poll without news is written this seldom."""

MOST_PENDING: Final = 200
"""Versions of a model, the newest ones, among which one is chosen to be published."""

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
    """The only writer of sources and their versions."""

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

    def note_listing(self, source: SourceRecord, listing: Listing) -> int | None:
        """Record what a poll found, and advance the cursor; return the number of new versions.

        None, and nothing is written, if the cursor is not the one from which was listed: another poll was faster, or
        the source was changed or removed. At most RECORDED_AT_ONCE new versions are recorded, and the cursor stays
        until all are: call it again.
        """
        self._writing_any()
        row = self._session.get(SourceRow, (source.model, source.name), with_for_update=True)
        if row is None or (row.stream, row.cursor) != (source.stream, source.cursor):
            return None
        states = self._known_states(source, [version.key for version in listing.versions])
        held = [version for version in listing.versions if states.get(version.key) == VersionState.HELD.value]
        self._judge_again(source, held)
        new = [version for version in listing.versions if version.key not in states]
        is_old = _old_ones(listing, states) if not source.cursor and not listing.whole else frozenset[str]()
        for version in new[:RECORDED_AT_ONCE]:
            found = self._new_version(source, version)
            if version.key in is_old:
                found.state, found.message = VersionState.SUPERSEDED.value, "a newer version was found before"
                found.ended_at = found.found_at
            self._session.add(found)
        if listing.whole:
            self._note_listed(source, frozenset(version.key for version in listing.versions))
        if len(new) <= RECORDED_AT_ONCE:
            self._note_poll(row, listing.cursor)
        self._session.flush()
        return min(len(new), RECORDED_AT_ONCE)

    def note_failed_poll(self, source: SourceRecord, error: str) -> int:
        """Record that a poll failed; return the number of such polls in a row. 0 if the source was changed."""
        self._writing_any()
        row = self._session.get(SourceRow, (source.model, source.name))
        if row is None or row.stream != source.stream:
            return 0
        row.failures, row.error, row.polled_at = row.failures + 1, error[:LONGEST_MESSAGE], self._now()
        self._add(row)
        return row.failures

    def add_version(self, model: str, name: str, version: FoundVersion, *, parent: str | None = None) -> VersionRecord:
        """Record a version that was pushed to a source; the same key again returns the recorded one.

        `parent` is the digest of the snapshot of which it is a delta, if its content is known. Raises NotFound.
        """
        self._writing(model)
        source = self.source(model, name)
        found = self._find_version(source, version.key)
        if found is None:
            row = self._new_version(source, version)
            row.parent = parent
            self._add(row)
            found = _version(row)
            self.wake_source(model, name)
        return found

    def pending_models(self, models: Collection[str]) -> frozenset[str]:
        """Return those of the models with versions to publish, as `pending_versions`."""
        found = set[str]()
        for some in batches(models):
            query = select(SourceVersionRow.model).join(SourceRow, _SOURCE_OF_VERSION).where(*_PENDING)
            found |= set(self._session.exec(query.where(col(SourceVersionRow.model).in_(some)).distinct()))
        return frozenset(found)

    def pending_versions(self, model: str) -> tuple[VersionRecord, ...]:
        """Return the versions of a model to publish, of sources that it has and that are not paused; newest first.

        At most MOST_PENDING.
        """
        query = select(SourceVersionRow).join(SourceRow, _SOURCE_OF_VERSION).where(*_PENDING)
        query = query.where(SourceVersionRow.model == model).order_by(col(SourceVersionRow.ordinal).desc())
        return tuple(map(_version, self._session.exec(query.limit(MOST_PENDING))))

    def version_page(self, model: str, name: str, *, after: str | None = None, limit: int = 50) -> Page[VersionRecord]:
        """Return the versions that a source found, newest first. Raises NotFound."""
        self._source_row(model, name)
        ordinal = ordinal_of(after)
        query = select(SourceVersionRow).where(SourceVersionRow.model == model, SourceVersionRow.source == name)
        query = query if ordinal is None else query.where(col(SourceVersionRow.ordinal) < ordinal)
        query = query.order_by(col(SourceVersionRow.ordinal).desc()).limit(clamp_limit(limit) + 1)
        found = self._session.exec(query).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.ordinal, value=_version)

    def newest_version(self, model: str, name: str) -> VersionRecord | None:
        """Return the version that a source, by its present settings, found last."""
        of = SourceVersionRow
        same = (col(of.source) == col(SourceRow.name)) & (col(of.model) == col(SourceRow.model))
        query = select(of).join(SourceRow, same & (col(of.stream) == col(SourceRow.stream)))
        query = query.where(of.model == model, of.source == name).order_by(col(of.ordinal).desc()).limit(1)
        row = self._session.exec(query).first()
        return None if row is None else _version(row)

    def count_versions(self, sources: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Mapping[str, int]]:
        """Return (model, source) -> state -> number of versions."""
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for some in batches({model for model, _ in sources}):
            query = (
                select(SourceVersionRow.model, SourceVersionRow.source, SourceVersionRow.state, func.count())
                .where(col(SourceVersionRow.model).in_(some))
                .group_by(SourceVersionRow.model, SourceVersionRow.source, SourceVersionRow.state)
            )
            for model, source, state, count in self._session.exec(query):
                counts.setdefault((model, source), {})[state] = count
        return {key: counts.get(key, {}) for key in sources}

    def note_read(self, ordinal: int, digest: str, *, parent: str | None = None) -> None:
        """Note the digest of a version's snapshot, which is in the artifact store now, and of a delta's parent."""
        self._writing_any()
        self._update_version(ordinal, digest=digest, parent=parent, message="", due_at=None)

    def postpone_version(self, ordinal: int, message: str, due_at: datetime) -> None:
        """Note that an attempt failed, and when the next one is due."""
        self._writing_any()
        attempts = SourceVersionRow.attempts + 1
        self._update_version(ordinal, attempts=attempts, message=message[:LONGEST_MESSAGE], due_at=due_at)

    def end_version(
        self, ordinal: int, state: VersionState, message: str = "", *, change_id: str | None = None
    ) -> None:
        """End a version that is still to be published; one that has ended stays as it is."""
        self._writing_any()
        given = {"state": state.value, "message": message[:LONGEST_MESSAGE], "change_id": change_id}
        self._update_version(ordinal, **given, ended_at=self._now(), due_at=None)

    def supersede_versions(self, newer: VersionRecord, *, but: Collection[int] = ()) -> None:
        """End the versions of a part that were found before one of it, held ones too: they are newest no more.

        `but` are ordinals of those that stay: deltas of it.
        """
        self._writing(newer.model)
        of = SourceVersionRow
        older = (col(of.model) == newer.model, col(of.part) == newer.part, col(of.ordinal) < newer.ordinal)
        self._session.execute(
            update(of)
            .where(*older, col(of.state).in_(OPEN), col(of.ordinal).not_in(but))
            .values(
                state=VersionState.SUPERSEDED.value,
                message=f"version {newer.version.key} is newer",
                ended_at=self._now(),
                due_at=None,
            )
        )
        self._session.expire_all()

    def note_pick_up(self, versions: Collection[VersionRecord]) -> None:
        """Note at each source the version of it that was published."""
        self._writing_any()
        for version in versions:
            row = self._session.get(SourceRow, (version.model, version.source))
            if row is not None:
                row.picked_at, row.picked_key = self._now(), version.version.key
                self._add(row)

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

    def _known_states(self, source: SourceRecord, keys: Sequence[str]) -> Mapping[str, str]:
        """Return key -> state of the versions that were recorded before."""
        of = SourceVersionRow
        found: dict[str, str] = {}
        for some in batches(keys):
            query = select(of.key, of.state).where(*_of_stream(source), col(of.key).in_(some))
            found |= dict(self._session.exec(query).all())
        return found

    def _note_listed(self, source: SourceRecord, keys: Collection[str]) -> None:
        """Note which versions a listing of all has: the others are gone, and their rows may be collected."""
        of = SourceVersionRow
        query = select(of.ordinal, of.key, of.listed).where(*_of_stream(source))
        known = self._session.exec(query).all()
        for listed in (True, False):
            changed = [ordinal for ordinal, key, was in known if (key in keys) is listed and was is not listed]
            for some in batches([ordinal for ordinal in changed if ordinal is not None]):
                self._session.execute(update(of).where(col(of.ordinal).in_(some)).values(listed=listed))

    def _judge_again(self, source: SourceRecord, versions: Sequence[FoundVersion]) -> None:
        """Judge versions again that were not promoted: their tags or metrics may be others now."""
        listed = {version.key: version for version in versions}
        for some in batches(listed):
            query = select(SourceVersionRow).where(*_of_stream(source), col(SourceVersionRow.key).in_(some))
            for row in self._session.exec(query):
                version = shrink(listed[row.key])
                if row.state == VersionState.HELD.value and row.version != document(version):
                    row.version = document(version)
                    row.message = source.spec.promote.describe_failure(version)[:LONGEST_MESSAGE]
                    row.state = (VersionState.HELD if row.message else VersionState.FOUND).value
                    self._session.add(row)

    def _find_version(self, source: SourceRecord, key: str) -> VersionRecord | None:
        query = select(SourceVersionRow).where(*_of_stream(source), SourceVersionRow.key == key)
        row = self._session.exec(query).first()
        return None if row is None else _version(row)

    def _new_version(self, source: SourceRecord, version: FoundVersion) -> SourceVersionRow:
        version = shrink(version)
        held = source.spec.promote.describe_failure(version)
        return SourceVersionRow(
            model=source.model,
            source=source.name,
            stream=source.stream,
            key=version.key,
            part=source.part,
            state=(VersionState.HELD if held else VersionState.FOUND).value,
            version=document(version),
            found_at=self._now(),
            message=held[:LONGEST_MESSAGE],
        )

    def _update_version(self, ordinal: int, **values: Any) -> None:
        of = (col(SourceVersionRow.ordinal) == ordinal, col(SourceVersionRow.state) == VersionState.FOUND.value)
        self._session.execute(update(SourceVersionRow).where(*of).values(**values))
        self._session.expire_all()


def is_poll_overdue(source: SourceRecord, now: datetime) -> bool:
    """Return whether a source was not polled for so long that its watch may be gone."""
    every = PUSHED_SECONDS if source.spec.push is not None else source.spec.every_seconds
    return source.polled_at is not None and now - source.polled_at > _longest_pause(every)


def _longest_pause(every_seconds: float) -> timedelta:
    """Return the time without a recorded poll after which a watch may be gone."""
    return max(2 * NOTED_EVERY, STALE_INTERVALS * timedelta(seconds=every_seconds))


_MODEL_OF_SOURCE: Final = col(ModelRow.name) == col(SourceRow.model)
_SOURCE_OF_VERSION: Final = (
    (col(SourceRow.model) == col(SourceVersionRow.model))
    & (col(SourceRow.name) == col(SourceVersionRow.source))
    & (col(SourceRow.stream) == col(SourceVersionRow.stream))
)
OPEN: Final = (VersionState.HELD.value, VersionState.FOUND.value)
"""States of versions that are still to be published."""
_PENDING: Final = (col(SourceVersionRow.state) == VersionState.FOUND.value, col(SourceRow.paused_at).is_(None))
_INITIAL: Final = {"cursor": "", "polled_at": None, "failures": 0, "error": "", "sent": False}
"""Progress of a stream that was never polled."""


def _old_ones(listing: Listing, states: Mapping[str, str]) -> frozenset[str]:
    """Return the unknown versions that are listed before a known one.

    A source that lists from the beginning lists them again after their rows were collected.
    """
    known = [index for index, version in enumerate(listing.versions) if version.key in states]
    last = max(known, default=0)
    return frozenset(version.key for version in listing.versions[:last] if version.key not in states)


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


def _of_stream(source: SourceRecord) -> tuple[Any, ...]:
    return (
        col(SourceVersionRow.model) == source.model,
        col(SourceVersionRow.source) == source.name,
        col(SourceVersionRow.stream) == source.stream,
    )


def _set(row: SourceRow, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, value)


def _source(row: SourceRow, owner: str) -> SourceRecord:
    given = read_fields(SourceRecord, row, but={"owner", "spec"})
    return SourceRecord(**given, owner=owner, spec=decode(SourceSpec, row.spec))


def _version(row: SourceVersionRow) -> VersionRecord:
    given = read_fields(VersionRecord, row, but={"version", "state"})
    return VersionRecord(**given, version=decode(FoundVersion, row.version), state=VersionState(row.state))
