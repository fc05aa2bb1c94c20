"""Snapshots: the published ones, those of segments, and those that were derived."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import bindparam, case
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, func, select, tuple_

from ipnext.errors import NotFound
from ipnext.model.registry.registry import Snapshot, SnapshotManifest, SnapshotSource
from ipnext.model.wire import decode_frozen
from ipnext.store.tables.registry import SnapshotRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import MODELS, UnitOfWork, batches, bytes_of, document, format_known, plain

SNAPSHOTS = METADATA.tables[SnapshotRow.__tablename__]
_SNAPSHOT = sa_select(SNAPSHOTS).where(
    SNAPSHOTS.c.model == bindparam("model"),
    SNAPSHOTS.c.part == bindparam("part"),
    SNAPSHOTS.c.number == bindparam("number"),
)
SNAPSHOT_IS = sa_update(SNAPSHOTS).where(
    SNAPSHOTS.c.model == bindparam("of_model"),
    SNAPSHOTS.c.part == bindparam("of_part"),
    SNAPSHOTS.c.number == bindparam("of_number"),
)
_COUNTED = (
    sa_update(MODELS)
    .where(MODELS.c.name == bindparam("of_name"))
    .values(
        document_bytes=case(
            (MODELS.c.document_bytes + bindparam("more") > 0, MODELS.c.document_bytes + bindparam("more")), else_=0
        )
    )
)
_SNAPSHOTS_NAMED = sa_select(SNAPSHOTS).where(
    tuple_(SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.number).in_(bindparam("names", expanding=True))
)


_PUBLISHED = col(SnapshotRow.derived_from).is_(None)


class Snapshots(UnitOfWork):
    """Snapshots of parts. Numbers rise by one from 1 for each part and are never reused."""

    def snapshot(self, model: str, part: str, number: int) -> Snapshot:
        """Return one snapshot. NotFound names the newest number of each part."""
        return self._once(("snapshot", model, part, number), lambda: self._read_snapshot(model, part, number))

    def _read_snapshot(self, model: str, part: str, number: int) -> Snapshot:
        row = self._run(_SNAPSHOT, model=model, part=part, number=number).first()
        if row is None:
            self._check_known(model)
            newest = self._newest_snapshots(model)
            there = format_known([f"{name} 1..{snapshot.number}" for name, snapshot in sorted(newest.items())])
            msg = f"model {model!r} has no snapshot {number} of part {part!r}; {there}"
            raise NotFound(msg)
        return read_snapshot(row)

    def has_snapshot(self, model: str, part: str, digest: str | None = None) -> bool:
        """Return whether a part has a published snapshot: one with a digest, or any."""
        query = select(SnapshotRow.number).where(SnapshotRow.model == model, SnapshotRow.part == part, _PUBLISHED)
        query = query if digest is None else query.where(SnapshotRow.digest == digest)
        return self._session.exec(query.limit(1)).first() is not None

    def has_bytes(self, model: str, part: str, digest: str) -> bool:
        """Return whether a part has a snapshot with a digest whose bytes are kept."""
        query = select(SnapshotRow.number).where(
            SnapshotRow.model == model,
            SnapshotRow.part == part,
            SnapshotRow.digest == digest,
            col(SnapshotRow.collected_at).is_(None),
        )
        return self._session.exec(query.limit(1)).first() is not None

    def newest_is_collected(self, model: str, part: str) -> bool:
        """Return whether the bytes of a part's newest snapshot were released: a publish has to bring it again."""
        newest = self._newest_snapshots(model).get(part)
        return newest is not None and newest.collected_at is not None

    def snapshots(self, model: str) -> tuple[Snapshot, ...]:
        """Return all snapshots of a model by part, the newest of each part first. Raises NotFound."""
        self._model_row(model)
        found = [
            read_snapshot(row) for row in self._session.exec(select(SnapshotRow).where(SnapshotRow.model == model))
        ]
        return tuple(sorted(found, key=lambda snapshot: (snapshot.part, -snapshot.number)))

    def collected_snapshots(self, model: str) -> frozenset[tuple[str, int]]:
        """Return (part, number) of a model's snapshots whose bytes were released."""
        query = sa_select(SNAPSHOTS.c.part, SNAPSHOTS.c.number).where(
            SNAPSHOTS.c.model == bindparam("model"), SNAPSHOTS.c.collected_at.is_not(None)
        )
        return frozenset((row.part, row.number) for row in self._run(query, model=model))

    def snapshots_named(self, names: Collection[tuple[str, str, int]]) -> tuple[Snapshot, ...]:
        """Return those of these snapshots (model, part, number) that exist, sorted.

        The cost depends on their count, not on the history.
        """
        found = [read_snapshot(row) for some in batches(names) for row in self._run(_SNAPSHOTS_NAMED, names=some)]
        return tuple(sorted(found, key=lambda snapshot: (snapshot.model, snapshot.part, snapshot.number)))

    def snapshot_of(self, model: str, part: str, digest: str) -> Snapshot | None:
        """Return the newest snapshot of a part with this digest."""
        query = select(SnapshotRow).where(
            SnapshotRow.model == model, SnapshotRow.part == part, SnapshotRow.digest == digest
        )
        row = self._session.exec(query.order_by(col(SnapshotRow.number).desc()).limit(1)).first()
        return None if row is None else read_snapshot(row)

    def add_segment(
        self, model: str, segment: str, source: SnapshotSource, *, hardware: Collection[str] = ()
    ) -> Snapshot:
        """Store a snapshot of a segment of a cut model; the same content of the same segment is stored once.

        `hardware`: kinds for whose derivative it was cut; empty: all others.
        """
        self._writing_model(model)
        known = select(SnapshotRow).where(SnapshotRow.model == model, SnapshotRow.part == segment)
        row = self._session.exec(known.where(SnapshotRow.digest == source.manifest.digest)).first()
        if row is not None:
            self._keep_again(row, source.manifest)
            self.add_hardware(read_snapshot(row), hardware)
            return read_snapshot(row)
        number = self._next_snapshot(model, segment)
        self._add_snapshot(model, segment, source, number=number, hardware=hardware)
        return self.snapshot(model, segment, number)

    def add_hardware(self, snapshot: Snapshot, hardware: Collection[str]) -> None:
        """Store that what was derived or cut is for these hardware kinds, too; empty: for all."""
        wanted = tuple(sorted({*snapshot.hardware, *hardware})) if snapshot.hardware and hardware else ()
        if wanted == snapshot.hardware:
            return
        self._writing_model(snapshot.model)
        row = self._get(SnapshotRow, (snapshot.model, snapshot.part, snapshot.number))
        if row is not None:
            row.hardware = document(wanted) if wanted else None
            self._add(row)

    def _next_snapshot(self, model: str, part: str) -> int:
        """Return the number of a part's next snapshot, published or derived."""
        query = select(func.max(SnapshotRow.number)).where(SnapshotRow.model == model, SnapshotRow.part == part)
        return (self._session.exec(query).one() or 0) + 1

    def _published_numbers(self, model: str, part: str) -> Iterator[int]:
        """Yield the numbers of a part's published snapshots, the newest first."""
        query = select(SnapshotRow.number).where(SnapshotRow.model == model, SnapshotRow.part == part, _PUBLISHED)
        yield from self._session.exec(query.order_by(col(SnapshotRow.number).desc()))

    def _newest_snapshots(self, model: str) -> Mapping[str, SnapshotRow]:
        """Map each part to its newest published snapshot."""
        numbers = (
            select(SnapshotRow.part, func.max(SnapshotRow.number).label("number"))
            .where(SnapshotRow.model == model, _PUBLISHED)
            .group_by(col(SnapshotRow.part))
            .subquery()
        )
        query = select(SnapshotRow).join(
            numbers, (col(SnapshotRow.part) == numbers.c.part) & (col(SnapshotRow.number) == numbers.c.number)
        )
        return {row.part: row for row in self._session.exec(query.where(SnapshotRow.model == model))}

    def _keep_again(self, row: SnapshotRow, manifest: SnapshotManifest) -> None:
        """Record that the bytes of a released snapshot are in the artifact store again."""
        if row.collected_at is not None:
            text, before = document(manifest), row.manifest
            row.collected_at, row.manifest = None, text
            self._add(row)
            self._count_documents(row.model, bytes_of(text) - bytes_of(before))

    def _count_documents(self, model: str, more: int) -> None:
        """Add to the byte count of a model's documents; `more` is below 0 if some were deleted."""
        if more:
            self.flush()
            self._write(_COUNTED, of_name=model, more=more)

    def _add_snapshot(
        self,
        model: str,
        part: str,
        source: SnapshotSource,
        *,
        number: int,
        derived_from: int | None = None,
        hardware: Collection[str] = (),
    ) -> None:
        text = document(source.manifest)
        row = SnapshotRow(
            model=model,
            part=part,
            number=number,
            digest=source.manifest.digest,
            uri=source.uri,
            manifest=text,
            created_at=self._now(),
            trained_at=None if source.trained_at is None else min(source.trained_at, self._now()),
            derived_from=derived_from,
            hardware=document(sorted(hardware)) if hardware else None,
            parent=source.manifest.parent,
            is_delta=source.manifest.is_delta,
            size_bytes=source.manifest.size_bytes,
        )
        self._add(row)
        self._count_documents(model, bytes_of(text))


def read_snapshot(row: Any) -> Snapshot:
    """Return the snapshot of a row."""
    return Snapshot(
        model=row.model,
        part=row.part,
        number=row.number,
        digest=row.digest,
        uri=row.uri,
        manifest=decode_frozen(SnapshotManifest, row.manifest),
        created_at=row.created_at,
        trained_at=row.trained_at,
        derived_from=row.derived_from,
        hardware=() if row.hardware is None else tuple(plain(row.hardware)),
    )
