"""The deny-list, and the snapshots that it covers."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from sqlalchemy import bindparam, delete, insert
from sqlalchemy import select as sa_select
from sqlmodel import col, func, or_, select, tuple_

from ipnext.errors import InvalidInput, NotFound
from ipnext.model.registry.denials import MOST_DENIALS, CoveredSnapshot, Denial
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.registry.sources import FoundVersion
from ipnext.model.wire import decode
from ipnext.store.registry.snapshots import Snapshots
from ipnext.store.tables.registry import DenialRow, DeniedSnapshotRow, SnapshotRow, SourceVersionRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches

DENIALS = METADATA.tables[DenialRow.__tablename__]
DENIED = METADATA.tables[DeniedSnapshotRow.__tablename__]
IN_FORCE = DENIALS.c.ended_at.is_(None)
_OF_MODEL = (
    sa_select(DENIED.c.part, DENIED.c.number, DENIALS)
    .join(DENIALS, DENIALS.c.ordinal == DENIED.c.denial)
    .where(DENIED.c.model == bindparam("model"), IN_FORCE)
    .order_by(DENIALS.c.ordinal)
)
_IMAGE: Final = "sha256:"


class Denials(Snapshots):
    """Denials apply to all models, so a unit that names one may not write them."""

    def put_denial(self, digest: str, *, reason: str, denied_by: str) -> Denial:
        """Deny a digest; one that is denied already keeps its reason. InvalidInput if the list is full."""
        self._writing(None)
        row = self._session.exec(select(DenialRow).where(DenialRow.digest == digest)).first()
        if row is not None and row.ended_at is None:
            return read_denial(row)
        if row is not None:  # its end is not carried out yet: the new denial covers the same snapshots
            self._remove(row.ordinal or 0)
        if (count := self._session.exec(select(func.count()).select_from(DenialRow)).one()) >= MOST_DENIALS:
            msg = f"digest: {count} are denied; allowed: {MOST_DENIALS}; end those that nothing has any more"
            raise InvalidInput(msg, field="digest", value=digest)
        row = DenialRow(digest=digest, reason=reason, denied_by=denied_by, denied_at=self._now())
        self._add(row)
        return read_denial(row)

    def end_denial(self, digest: str) -> Denial:
        """End a denial, and return it: it is in force no more. Raises NotFound."""
        self._writing(None)
        found = self.denial(digest)
        row = self._get(DenialRow, found.number)
        if row is not None:
            row.ended_at = self._now()
            self._add(row)
        return found

    def remove_denial(self, denial: Denial) -> None:
        """Remove an ended denial whose snapshots were all let go."""
        self._writing(None)
        row = self._get(DenialRow, denial.number)
        if row is not None and row.ended_at is not None:
            with self._bookkeeping():
                self._remove(denial.number)

    def denial(self, digest: str) -> Denial:
        """Return the denial of a digest. Raises NotFound."""
        found = self.find_digest_denial(digest)
        if found is None:
            msg = f"digest {digest!r} is not denied; `ipnext get denials` lists those that are"
            raise NotFound(msg)
        return found

    def find_digest_denial(self, digest: str) -> Denial | None:
        """Return the denial of exactly this digest."""
        return self._find({digest})

    def denials_to_carry_out(self) -> tuple[Denial, ...]:
        """Return denials whose snapshots were not all found yet, oldest first."""
        return self._those(IN_FORCE & DENIALS.c.is_carried_out.is_(False))

    def ended_denials(self) -> tuple[Denial, ...]:
        """Return denials that were ended and whose snapshots were not all let go yet."""
        return self._those(DENIALS.c.ended_at.is_not(None))

    def mark_carried_out(self, denial: Denial) -> None:
        """Note that all snapshots of a denial were found."""
        self._writing(None)
        row = self._get(DenialRow, denial.number)
        if row is not None:
            with self._bookkeeping():
                row.is_carried_out = True
                self._add(row)

    def find_covered(self, denial: Denial) -> tuple[CoveredSnapshot, ...]:
        """Return all snapshots that a denial covers. One search reads the manifests of all snapshots.

        Those that are or have the digest, those that sources read from the image of that digest, and those that were
        made from such a snapshot: deltas, segments of a split, compiled and optimised ones.
        """
        named = {denial.digest, *self._read_from_image(denial.digest)}
        rows = self._covered(
            or_(self._among(col(SnapshotRow.digest), named), col(SnapshotRow.manifest).contains(denial.digest))
        )
        found, new = set(rows), {row.digest for row in rows} | named
        known = set(new)
        while new:
            made = [row for some in batches(new) for row in self._covered(self._among(col(SnapshotRow.parent), some))]
            found.update(made)
            new = {row.digest for row in made} - known
            known |= new
        return tuple(sorted(found))

    def noted_snapshots(self, denial: Denial) -> frozenset[tuple[str, str, int]]:
        """Return model, part and number of the snapshots that are noted as covered."""
        of = DENIED.c
        return frozenset(
            map(tuple, self._run(sa_select(of.model, of.part, of.number).where(of.denial == denial.number)))
        )

    def mark_denied(self, model: str, denial: Denial, snapshots: Iterable[CoveredSnapshot]) -> None:
        """Note which snapshots of a model a denial covers; those that are noted already stay."""
        self._writing(model)
        row = self._get(DenialRow, denial.number)
        if row is None or row.ended_at is not None:
            return
        of = (DENIED.c.model == model, DENIED.c.denial == denial.number)
        known = {(each.part, each.number) for each in self._run(sa_select(DENIED.c.part, DENIED.c.number).where(*of))}
        new = [each for each in snapshots if (each.part, each.number) not in known]
        if new:
            with self._bookkeeping():
                self._connection.execute(insert(DENIED), [{**each._asdict(), "denial": denial.number} for each in new])

    def let_go(self, model: str, denial: Denial) -> None:
        """Forget which snapshots of a model a denial covers."""
        self._writing(model)
        with self._bookkeeping():
            self._write(delete(DENIED).where(DENIED.c.model == model, DENIED.c.denial == denial.number))

    def denied_snapshots(
        self, model: str, among: Collection[tuple[str, int]] | None = None
    ) -> Mapping[tuple[str, int], Denial]:
        """Map (part, number) of a model's denied snapshots, or of those among some, to their oldest denial."""
        found: dict[tuple[str, int], Denial] = {}
        if among is None:
            queries = [_OF_MODEL]
        else:
            queries = [_OF_MODEL.where(tuple_(DENIED.c.part, DENIED.c.number).in_(some)) for some in batches(among)]
        for query in queries:
            for row in self._run(query, model=model):
                found.setdefault((row.part, row.number), read_denial(row))
        return found

    def models_denied(self, denial: Denial | None = None) -> tuple[str, ...]:
        """Return the models that have a denied snapshot, or one that this denial covers, by name."""
        query = sa_select(DENIED.c.model).distinct().order_by(DENIED.c.model)
        query = query if denial is None else query.where(DENIED.c.denial == denial.number)
        return tuple(self._run(query).scalars())

    def covered_by(self, denial: Denial, *, limit: int) -> tuple[CoveredSnapshot, ...]:
        """Return the first snapshots that a denial covers, of visible owners."""
        of = DENIED.c
        query = sa_select(of.model, of.part, of.number, of.digest).where(
            of.denial == denial.number, *self._is_of_visible_owner(of.model)
        )
        rows = self._run(query.order_by(of.model, of.part, of.number).limit(limit))
        return tuple(CoveredSnapshot(row.model, row.part, row.number, row.digest) for row in rows)

    def find_denial(self, manifest: SnapshotManifest) -> Denial | None:
        """Return the denial that covers a manifest: of its digest, a file, its image, or what it was made from."""
        if self._run(sa_select(DENIALS.c.ordinal).where(IN_FORCE).limit(1)).first() is None:
            return None
        own = {manifest.digest, *((manifest.parent,) if manifest.parent else ())}
        named = self._find({*own, *(file.sha256 for file in manifest.files), *self._images_of(own)})
        if named is not None:
            return named
        query = sa_select(DENIALS).join(DENIED, DENIED.c.denial == DENIALS.c.ordinal)
        row = self._run(query.where(IN_FORCE, DENIED.c.digest.in_(own)).limit(1)).first()
        return None if row is None else read_denial(row)

    def _find(self, digests: Collection[str]) -> Denial | None:
        for some in batches(digests):
            query = sa_select(DENIALS).where(IN_FORCE, self._among(DENIALS.c.digest, some))
            row = self._run(query.order_by(DENIALS.c.ordinal).limit(1)).first()
            if row is not None:
                return read_denial(row)
        return None

    def _those(self, which: Any) -> tuple[Denial, ...]:
        return tuple(map(read_denial, self._run(sa_select(DENIALS).where(which).order_by(DENIALS.c.ordinal))))

    def _remove(self, number: int) -> None:
        self._write(delete(DENIED).where(DENIED.c.denial == number))
        self._write(delete(DENIALS).where(DENIALS.c.ordinal == number))

    def _read_from_image(self, digest: str) -> frozenset[str]:
        """Return the snapshots that sources read from the image of a digest."""
        of = SourceVersionRow
        query = select(of.digest, of.version).where(
            col(of.digest).is_not(None), col(of.version).contains(f"{_IMAGE}{digest}")
        )
        place = f"{_IMAGE}{digest}"
        found = (read for read, text in self._session.exec(query) if decode(FoundVersion, text).place == place)
        return frozenset(read for read in found if read is not None)

    def _images_of(self, digests: Collection[str]) -> frozenset[str]:
        """Return the digests of the images from which sources read these snapshots."""
        texts = self._session.exec(select(SourceVersionRow.version).where(col(SourceVersionRow.digest).in_(digests)))
        places = (decode(FoundVersion, text).place for text in texts)
        return frozenset(place.removeprefix(_IMAGE) for place in places if place.startswith(_IMAGE))

    def _covered(self, which: Any) -> list[CoveredSnapshot]:
        of = SnapshotRow
        rows = self._session.exec(select(of.model, of.part, of.number, of.digest).where(which))
        return [CoveredSnapshot(model, part, number, digest) for model, part, number, digest in rows]


def read_denial(row: Any) -> Denial:
    """Return the denial of a row."""
    return Denial(
        number=row.ordinal or 0,
        digest=row.digest,
        reason=row.reason,
        denied_by=row.denied_by,
        denied_at=row.denied_at,
        is_carried_out=row.is_carried_out,
    )
