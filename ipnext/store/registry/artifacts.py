"""Bytes of the artifact store.

The account that each blob counts for, the blobs in use, and the blobs that may be collected. A user of a blob touches
it first and looks for it in the artifact store afterwards. A collection removes a blob within a unit that blocks all
touches, and only one that was not touched for its grace time. So a blob that is found after a touch stays for the grace
time.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from ipnext.model.access.artifact_use import Allowance, account_of, is_owners, owner_of_account
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.store.database import dialects
from ipnext.store.registry.snapshots import SNAPSHOTS, Snapshots
from ipnext.store.tables.registry import ArtifactRow, ModelRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches, bytes_of, document

ARTIFACTS = METADATA.tables[ArtifactRow.__tablename__]
_MODELS = METADATA.tables[ModelRow.__tablename__]
_IS = ARTIFACTS.c.digest == bindparam("of_digest")
_AMONG = ARTIFACTS.c.digest.in_(bindparam("digests", expanding=True))
_ONE = select(ARTIFACTS).where(_IS)
_SOME = select(ARTIFACTS).where(_AMONG)
_CHANGE = update(ARTIFACTS).where(_IS)
_TOUCH = update(ARTIFACTS).where(_AMONG).values(touched_at=bindparam("now"))
_PLACE = (SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.number)
_KEPT = select(*_PLACE, SNAPSHOTS.c.digest, SNAPSHOTS.c.manifest).where(SNAPSHOTS.c.collected_at.is_(None))
_KEPT_PAGE = _KEPT.order_by(*_PLACE).limit(bindparam("limit"))
_KEPT_AFTER = _KEPT_PAGE.where(tuple_(*_PLACE) > tuple_(*(bindparam(f"after_{name}") for name in ("m", "p", "n"))))
_UNUSED = select(ARTIFACTS.c.digest).where(ARTIFACTS.c.touched_at < bindparam("unused_since"))
_UNUSED_PAGE = _UNUSED.order_by(ARTIFACTS.c.digest).limit(bindparam("limit"))
_READ_AT_ONCE = 500
_NAMED = re.compile(r'"sha256":"([0-9a-f]{64})"')
"""A file in the text of a manifest. Within a string of JSON the quotes would be escaped."""

Place = tuple[str, str, int]
"""Model, part and number of a snapshot."""


class Artifacts(Snapshots):
    """Counted uploads, touches, and the blobs that may be collected. The audit has no entries for them."""

    def reserve_blob(self, digest: str, size_bytes: int, allowance: Allowance, *, field: str = "blobs") -> None:
        """Count an upload before its bytes arrive. Raises QuotaExceeded.

        An upload of a blob that is already counted costs nothing. `field` is the request's field for the message.
        """
        self._writing_any()
        dialects.lock_owner(self._connection, allowance.account)
        dialects.lock_artifacts(self._connection, alone=False)
        with self._bookkeeping():
            row = self._run(_ONE, of_digest=digest).first()
            counted = 0 if row is None or not row.account else row.size_bytes
            more = 0 if row is not None and row.stored and row.account else max(0, size_bytes - counted)
            if more:
                allowance.check(self.artifact_bytes(allowance.account), more, field=field)
            account = row.account if row is not None and row.account else allowance.account
            given = {"digest": digest, "size_bytes": counted + more, "account": account, "uploads": 1}
            self._put_artifacts([given], {"account": None, "size_bytes": None, "uploads": ARTIFACTS.c.uploads + 1})

    def blob_stored(self, digest: str, size_bytes: int) -> None:
        """Record that a reserved upload has succeeded, with its size."""
        with self._bookkeeping():
            self._write(_CHANGE, of_digest=digest, size_bytes=size_bytes, stored=True, touched_at=self._now())
            self._end_upload(digest)

    def blob_refused(self, digest: str) -> None:
        """Record that a reserved upload has failed.

        It counts no more, unless another upload of the same blob continues.
        """
        with self._bookkeeping():
            self._end_upload(digest)
            over = _CHANGE.where(ARTIFACTS.c.stored.is_(False), ARTIFACTS.c.uploads <= 0)
            self._write(over.values(account="", size_bytes=0), of_digest=digest)

    def touch_artifacts(self, sizes: Mapping[str, int]) -> None:
        """Keep these blobs for the grace time, whether they are in the artifact store or arrive later.

        Digest -> bytes.
        """
        self._writing_any()
        dialects.lock_artifacts(self._connection, alone=False)
        rows = [{"digest": digest, "size_bytes": size, "account": "", "uploads": 0} for digest, size in sizes.items()]
        with self._bookkeeping():
            self._put_artifacts(rows, {})

    def touch_known(self, digests: Collection[str]) -> frozenset[str]:
        """Keep the known ones of these blobs for the grace time, and return them.

        The others have no row: look, then touch.
        """
        self._writing_any()
        dialects.lock_artifacts(self._connection, alone=False)
        found = frozenset(row.digest for some in batches(digests) for row in self._run(_SOME, digests=some))
        with self._bookkeeping():
            for some in batches(found):
                self._write(_TOUCH, digests=some, now=self._now())
        return found

    def charge_artifacts(self, sizes: Mapping[str, int], allowance: Allowance) -> None:
        """Charge an owner for the artifacts of a publish that no owner is charged for, and touch them all.

        Raises QuotaExceeded.
        """
        dialects.lock_owner(self._connection, allowance.account)
        self.touch_artifacts(sizes)
        rows = [row for some in batches(sizes) for row in self._run(_SOME, digests=some)]
        new = {row.digest: sizes[row.digest] for row in rows if not is_owners(row.account)}
        if new:
            allowance.check(self.artifact_bytes(allowance.account), sum(new.values()))
        with self._bookkeeping():
            owned = {"account": allowance.account, "stored": True}
            given = [{"digest": digest, "size_bytes": size, "uploads": 0, **owned} for digest, size in new.items()]
            self._put_artifacts(given, dict.fromkeys(("account", "stored", "size_bytes")))

    def artifact_bytes(self, account: str) -> int:
        """Return the bytes that count for an account, with uploads under way.

        For an owner also its models' documents.
        """
        query = select(func.coalesce(func.sum(ARTIFACTS.c.size_bytes), 0)).where(ARTIFACTS.c.account == account)
        stored, owner = int(self._run(query).scalar_one()), owner_of_account(account)
        return stored if owner is None else stored + self._owners_document_bytes((owner,)).get(owner, 0)

    def owners_artifact_bytes(self, owners: Collection[str]) -> Mapping[str, int]:
        """Map each owner to its bytes, with its models' documents; owners without any are left out."""
        accounts = {account_of(owner): owner for owner in owners}
        account, size = ARTIFACTS.c.account, func.sum(ARTIFACTS.c.size_bytes).label("size")
        found = Counter(self._owners_document_bytes(owners))
        for some in batches(accounts):
            for row in self._run(select(account, size).where(self._among(account, some)).group_by(account)):
                found[accounts[row.account]] += int(row.size)
        return found

    def _owners_document_bytes(self, owners: Collection[str]) -> Mapping[str, int]:
        """Map each owner to the bytes of its models' documents, retired models included.

        Owners without any are left out.
        """
        owner, size = _MODELS.c.owner, func.sum(_MODELS.c.document_bytes).label("size")
        return {
            row.owner: int(row.size)
            for some in batches(owners)
            for row in self._run(select(owner, size).where(self._among(owner, some)).group_by(owner))
        }

    # collection

    def kept_artifacts(self, *, since: datetime | None = None) -> Iterator[str]:
        """Yield the digests of all snapshots that are not released: of manifests and blobs.

        `since` limits them to newer snapshots.
        """
        query = _KEPT if since is None else _KEPT.where(SNAPSHOTS.c.created_at >= since)
        for row in self._run(query.execution_options(yield_per=_READ_AT_ONCE)):
            yield row.digest
            yield from _NAMED.findall(row.manifest)

    def kept_page(
        self, after: Place | None, *, limit: int, but: Collection[Place] = ()
    ) -> tuple[list[str], Place | None]:
        """Return a part of `kept_artifacts`, and the place from which the next call goes on; None at the end.

        `but` are snapshots whose artifacts are left out.
        """
        given = {} if after is None else dict(zip(("after_m", "after_p", "after_n"), after, strict=True))
        rows = self._run(_KEPT_PAGE if after is None else _KEPT_AFTER, limit=limit, **given).all()
        kept = [row for row in rows if not but or (row.model, row.part, row.number) not in but]
        digests = [digest for row in kept for digest in (row.digest, *_NAMED.findall(row.manifest))]
        last = rows[-1] if len(rows) == limit else None
        return digests, None if last is None else (last.model, last.part, last.number)

    def artifacts_in_use(self, since: datetime) -> frozenset[str]:
        """Return the digests that were touched since then."""
        query = select(ARTIFACTS.c.digest).where(ARTIFACTS.c.touched_at >= since)
        return frozenset(self._run(query).scalars())

    def free_artifacts(self, digests: Collection[str], *, unused_since: datetime, began: datetime) -> frozenset[str]:
        """Return the artifacts that may be removed before this unit ends: no other unit can touch one until then.

        `began` is when the collection read `kept_artifacts`; snapshots made since then keep their artifacts.
        """
        self._writing_any()
        dialects.lock_artifacts(self._connection, alone=True)
        rows = [row for some in batches(digests) for row in self._run(_SOME, digests=some)]
        used = {row.digest for row in rows if row.touched_at >= unused_since}
        return frozenset(digests) - used - frozenset(self.kept_artifacts(since=began))

    def forget_artifacts(self, digests: Collection[str]) -> None:
        """Record that these artifacts were removed from the artifact store, and count for no owner."""
        with self._bookkeeping():
            for some in batches(digests):
                self._write(delete(ARTIFACTS).where(_AMONG), digests=some)

    def unused_page(self, unused_since: datetime, after: str, *, limit: int) -> tuple[str, ...]:
        """Return the first digests after one that have a row and were not touched since then."""
        query = _UNUSED_PAGE.where(ARTIFACTS.c.digest > bindparam("after"))
        return tuple(self._run(query, unused_since=unused_since, after=after, limit=limit).scalars())

    def _put_artifacts(self, rows: list[dict[str, Any]], changed: Mapping[str, Any]) -> None:
        """Write rows as touched now.

        `changed` also updates existing rows; a column with the value None takes the new row's value.
        """
        if not rows:
            return
        kind = sqlite if self._connection.dialect.name == "sqlite" else postgresql
        new = kind.insert(ARTIFACTS)
        values = {name: new.excluded[name] if value is None else value for name, value in changed.items()}
        new = new.on_conflict_do_update(
            index_elements=[ARTIFACTS.c.digest], set_={"touched_at": new.excluded.touched_at, **values}
        )
        now = self._now()
        ordered = sorted(rows, key=lambda row: str(row["digest"]))  # two units that touch the same blobs never deadlock
        self._connection.execute(new, [{"stored": False, "touched_at": now, **row} for row in ordered])

    def _end_upload(self, digest: str) -> None:
        self._write(_CHANGE.values(uploads=ARTIFACTS.c.uploads - 1), of_digest=digest)


def sizes_of(manifest: SnapshotManifest) -> Mapping[str, int]:
    """Map each digest of a snapshot's blobs and of its manifest to the bytes that it counts for.

    A blob counts once. Each further name that the manifest gives to one of its blobs counts for the manifest, so that
    all together count as many bytes as the snapshot has where it is laid out.
    """
    blobs = {file.sha256: file.size_bytes for file in manifest.files}
    names = manifest.size_bytes - sum(blobs.values())
    return blobs | {manifest.digest: bytes_of(document(manifest)) + names}
