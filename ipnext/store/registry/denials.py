"""The deny-list, and the snapshots that it covers."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import bindparam, delete
from sqlalchemy import select as sa_select
from sqlmodel import col, func, or_, select

from ipnext.errors import InvalidInput, NotFound
from ipnext.model.registry.denials import MOST_DENIALS, Denial, DeniedSnapshot
from ipnext.model.registry.registry import Snapshot, SnapshotManifest
from ipnext.store.registry.snapshots import Snapshots, _snapshot
from ipnext.store.tables.registry import DenialRow, DeniedSnapshotRow, SnapshotRow, SourceVersionRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches

_DENIALS = METADATA.tables[DenialRow.__tablename__]
_DENIED = METADATA.tables[DeniedSnapshotRow.__tablename__]
_OF_MODEL = (
    sa_select(_DENIED.c.part, _DENIED.c.number, _DENIALS)
    .join(_DENIALS, _DENIALS.c.ordinal == _DENIED.c.denial)
    .where(_DENIED.c.model == bindparam("model"))
    .order_by(_DENIALS.c.ordinal)
)
SEARCHED_AT_ONCE = 50
"""Digests that one search of all manifests looks for."""


class Denials(Snapshots):
    """Denials apply to all models, so a unit that names one may not write them."""

    def put_denial(self, digest: str, *, reason: str, denied_by: str) -> Denial:
        """Deny a digest; one that is denied already keeps its reason. InvalidInput if the list is full."""
        self._writing(None)
        row = self._denial_row(digest)
        if row is not None:
            return _denial(row)
        if (count := self._session.exec(select(func.count()).select_from(DenialRow)).one()) >= MOST_DENIALS:
            msg = f"digest: {count} are denied; allowed: {MOST_DENIALS}; end those that nothing has any more"
            raise InvalidInput(msg, field="digest", value=digest)
        row = DenialRow(digest=digest, reason=reason, denied_by=denied_by, denied_at=self._now())
        self._add(row)
        return _denial(row)

    def delete_denial(self, digest: str) -> Denial:
        """End a denial, and return it. Raises NotFound."""
        self._writing(None)
        found = self.denial(digest)
        self._write(delete(_DENIED).where(_DENIED.c.denial == found.number))
        self._write(delete(_DENIALS).where(_DENIALS.c.ordinal == found.number))
        return found

    def denial(self, digest: str) -> Denial:
        """Return the denial of a digest. Raises NotFound."""
        row = self._denial_row(digest)
        if row is None:
            msg = f"digest {digest!r} is not denied; `ipnext get denials` lists those that are"
            raise NotFound(msg)
        return _denial(row)

    def denials_to_carry_out(self) -> tuple[Denial, ...]:
        """Return denials whose snapshots were not all found yet, oldest first."""
        query = select(DenialRow).where(col(DenialRow.is_carried_out).is_(False)).order_by(col(DenialRow.ordinal))
        return tuple(map(_denial, self._session.exec(query)))

    def mark_carried_out(self, denial: Denial) -> None:
        """Note that all snapshots of a denial were found."""
        self._writing(None)
        row = self._get(DenialRow, denial.number)
        if row is not None:
            with self._bookkeeping():
                row.is_carried_out = True
                self._add(row)

    def find_covered(self, denial: Denial) -> tuple[Snapshot, ...]:
        """Return all snapshots that a denial covers, by a search of all manifests.

        Those that are or have the digest, those that sources read from the image of that digest, and those that were
        made from such a snapshot: deltas, segments of a split, compiled and optimised ones.
        """
        found: dict[tuple[str, str, int], Snapshot] = {}
        new = {denial.digest, *self._read_from_image(denial.digest)}
        known = set(new)
        while new:
            chunks = (sorted(new)[start : start + SEARCHED_AT_ONCE] for start in range(0, len(new), SEARCHED_AT_ONCE))
            rows = [row for some in chunks for row in self._search(some)]
            found |= {(row.model, row.part, row.number): _snapshot(row) for row in rows}
            new = {row.digest for row in rows} - known
            known |= new
        return tuple(found[key] for key in sorted(found))

    def mark_denied(self, model: str, denial: Denial, snapshots: Iterable[Snapshot]) -> None:
        """Note which snapshots of a model a denial covers; those that are noted already stay."""
        self._writing(model)
        if self._get(DenialRow, denial.number) is None:
            return
        for each in snapshots:
            if self._get(DeniedSnapshotRow, (model, each.part, each.number, denial.number)) is None:
                row = DeniedSnapshotRow(model=model, part=each.part, number=each.number, digest=each.digest)
                row.denial = denial.number
                with self._bookkeeping():
                    self._add(row)

    def denied_snapshots(self, model: str) -> Mapping[tuple[str, int], Denial]:
        """Map (part, number) of a model's denied snapshots to their oldest denial."""
        found: dict[tuple[str, int], Denial] = {}
        for row in self._run(_OF_MODEL, model=model):
            found.setdefault((row.part, row.number), _denial(row))
        return found

    def models_denied(self) -> tuple[str, ...]:
        """Return the models that have a denied snapshot, by name."""
        return tuple(self._session.exec(select(DeniedSnapshotRow.model).distinct().order_by(DeniedSnapshotRow.model)))

    def denied_of(self, denial: Denial, *, limit: int) -> tuple[DeniedSnapshot, ...]:
        """Return the first snapshots that a denial covers, of visible owners."""
        query = select(DeniedSnapshotRow).where(
            DeniedSnapshotRow.denial == denial.number, *self._is_of_visible_owner(col(DeniedSnapshotRow.model))
        )
        keys = (col(DeniedSnapshotRow.model), col(DeniedSnapshotRow.part), col(DeniedSnapshotRow.number))
        found = self._session.exec(query.order_by(*keys).limit(limit))
        names = [(row.model, row.part, row.number) for row in found]
        return tuple(DeniedSnapshot(snapshot=each, denial=denial) for each in self.snapshots_named(names))

    def find_denial(self, manifest: SnapshotManifest) -> Denial | None:
        """Return the denial that covers a manifest: of its digest, a file, or what it was made from."""
        parent = manifest.parent or ""
        named = {manifest.digest, parent, *(file.sha256 for file in manifest.files)}
        for some in batches(named):
            row = self._session.exec(select(DenialRow).where(self._among(col(DenialRow.digest), some))).first()
            if row is not None:
                return _denial(row)
        query = (
            select(DenialRow)
            .join(DeniedSnapshotRow, col(DeniedSnapshotRow.denial) == col(DenialRow.ordinal))
            .where(col(DeniedSnapshotRow.digest).in_((manifest.digest, parent)))
        )
        row = self._session.exec(query).first()
        return None if row is None else _denial(row)

    def find_digest_denial(self, digest: str) -> Denial | None:
        """Return the denial of exactly this digest."""
        row = self._denial_row(digest)
        return None if row is None else _denial(row)

    def _denial_row(self, digest: str) -> DenialRow | None:
        return self._session.exec(select(DenialRow).where(DenialRow.digest == digest)).first()

    def _read_from_image(self, digest: str) -> frozenset[str]:
        """Return the snapshots that sources read from the image of a digest."""
        query = select(SourceVersionRow.digest).where(
            col(SourceVersionRow.digest).is_not(None), col(SourceVersionRow.version).contains(f"sha256:{digest}")
        )
        return frozenset(each for each in self._session.exec(query) if each is not None)

    def _search(self, digests: Collection[str]) -> Iterable[SnapshotRow]:
        named = [col(SnapshotRow.manifest).contains(digest) for digest in digests]
        return self._session.exec(select(SnapshotRow).where(or_(self._among(col(SnapshotRow.digest), digests), *named)))


def _denial(row: Any) -> Denial:
    return Denial(
        number=row.ordinal or 0,
        digest=row.digest,
        reason=row.reason,
        denied_by=row.denied_by,
        denied_at=row.denied_at,
        is_carried_out=row.is_carried_out,
    )
