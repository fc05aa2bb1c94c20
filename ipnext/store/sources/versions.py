"""Versions that sources found. A version is recorded in the unit that advances the cursor."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, update
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.registry.sources import FoundVersion, Listing, VersionState, shrink
from ipnext.model.wire import decode
from ipnext.store.paging import Page, clamp_limit, ordinal_of, page_of
from ipnext.store.records import SourceRecord, VersionRecord
from ipnext.store.sources.sources import LONGEST_MESSAGE, OPEN, Sources
from ipnext.store.tables.changes import ChangeRow
from ipnext.store.tables.registry import SourceRow, SourceVersionRow
from ipnext.store.unit_of_work import batches, document, read_fields

RECORDED_AT_ONCE: Final = 500
"""New versions that one unit of work records."""

MOST_PENDING: Final = 200
"""Versions of a model, the newest ones, among which one is chosen to be published."""


class SourceVersions(Sources):
    """The only writer of versions."""

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

    def reopen_versions(self, model: str) -> None:
        """Have the newest published version of each source published again if its publish was superseded."""
        self._writing(model)
        of, newer = SourceVersionRow, aliased(SourceVersionRow)
        published = VersionState.PUBLISHED.value
        is_newer = (newer.source == of.source, newer.stream == of.stream, newer.state == published)
        newest = select(func.max(newer.ordinal)).where(newer.model == model, *is_newer).correlate(of).scalar_subquery()
        change = select(ChangeRow.id).where(ChangeRow.id == of.change_id)
        self._session.execute(
            update(of)
            .where(col(of.model) == model, col(of.state) == published, col(of.ordinal) == newest)
            .where(change.where(ChangeRow.state == ChangeState.SUPERSEDED.value).exists())
            .values(state=VersionState.FOUND.value, change_id=None, ended_at=None, message="")
            .execution_options(synchronize_session=False)
        )

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


_SOURCE_OF_VERSION: Final = (
    (col(SourceRow.model) == col(SourceVersionRow.model))
    & (col(SourceRow.name) == col(SourceVersionRow.source))
    & (col(SourceRow.stream) == col(SourceVersionRow.stream))
)
_PENDING: Final = (col(SourceVersionRow.state) == VersionState.FOUND.value, col(SourceRow.paused_at).is_(None))


def _old_ones(listing: Listing, states: Mapping[str, str]) -> frozenset[str]:
    """Return the unknown versions that are listed before a known one.

    A source that lists from the beginning lists them again after their rows were collected.
    """
    known = [index for index, version in enumerate(listing.versions) if version.key in states]
    last = max(known, default=0)
    return frozenset(version.key for version in listing.versions[:last] if version.key not in states)


def _of_stream(source: SourceRecord) -> tuple[Any, ...]:
    return (
        col(SourceVersionRow.model) == source.model,
        col(SourceVersionRow.source) == source.name,
        col(SourceVersionRow.stream) == source.stream,
    )


def _version(row: SourceVersionRow) -> VersionRecord:
    given = read_fields(VersionRecord, row, but={"version", "state"})
    return VersionRecord(**given, version=decode(FoundVersion, row.version), state=VersionState(row.state))
