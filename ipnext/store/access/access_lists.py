"""Sources of the lists by which regions check predictions (`ipnext.model.access.predictions`), and their revisions."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlmodel import col, func, or_, select

from ipnext.errors import StaleWrite
from ipnext.model.access.predictions import (
    AccessRevision,
    AccessSpec,
    CallerKey,
    CallerRole,
    ModelAccess,
    TokenIssuer,
    listed_access,
)
from ipnext.model.wire import decode, decode_plain
from ipnext.store.tables.access import AccessListRow, KeyRow, RegionAccessRow, RoleBindingRow
from ipnext.store.tables.registry import ModelRow
from ipnext.store.unit_of_work import UnitOfWork, batches, plain

THE_LIST: Final = 1
BYTES_OF_A_KEY: Final = 220
"""Of its entry beside its name and grants: id, digest, end, and the names of its fields."""
BYTES_OF_A_ROLE: Final = 80
"""Of its entry beside its texts."""
MOST_BYTES_OF_A_CHARACTER: Final = 4
"""In JSON; names of people and groups have any printable characters."""


class AccessBytes(NamedTuple):
    """Size of an access list's entries."""

    models: int
    """All models, retired ones included."""
    callers: int
    """All valid keys, and all roles."""


class AccessListState(NamedTuple):
    """The part of the lists' content that is stored for them alone."""

    version: int | None = None
    """Of policies and issuer; None: no API has stored its own yet."""
    policies: str = ""
    issuer: TokenIssuer | None = None
    """Without its keys."""
    signing_keys: tuple[Mapping[str, Any], ...] = ()
    signing_keys_at: datetime | None = None
    """When the keys were read."""


class AccessLists(UnitOfWork):
    """Reads of keys, roles and models for the list.

    Its row belongs to no model: a unit that names one may not write it.
    """

    def access_list_state(self) -> AccessListState:
        """Return the stored state; the default before the first write."""
        row = self._get(AccessListRow, THE_LIST)
        if row is None:
            return AccessListState()
        return AccessListState(
            row.version,
            row.policies,
            None if row.issuer is None else decode(TokenIssuer, row.issuer),
            () if row.signing_keys is None else tuple(json.loads(row.signing_keys)),
            row.signing_keys_at,
        )

    def region_lists(self) -> Mapping[str, AccessRevision]:
        """Map regions to revision and digest of their list."""
        query = select(RegionAccessRow.region, RegionAccessRow.revision, RegionAccessRow.digest)
        return {
            region: AccessRevision(revision=revision, digest=digest)
            for region, revision, digest in self._session.exec(query)
        }

    def access_marks(self) -> tuple[Any, ...]:
        """Return a value that changes when keys, roles or manifests do. Rows are counted, none is read."""
        of_keys = select(func.count(), func.max(KeyRow.ordinal), func.count(col(KeyRow.revoked_at)))
        of_roles = select(func.count(), func.max(RoleBindingRow.ordinal), func.max(RoleBindingRow.created_at))
        of_models = select(func.count(), func.coalesce(func.sum(ModelRow.version), 0))
        keys = self._session.exec(of_keys.where(KeyRow.kind == "key")).one()
        return (*keys, *self._session.exec(of_roles).one(), *self._session.exec(of_models).one())

    def caller_keys(self) -> tuple[CallerKey, ...]:
        """Return the API keys that are neither revoked nor expired, by id.

        Sessions and tickets are for the API alone.
        """
        valid = (KeyRow.kind == "key", col(KeyRow.revoked_at).is_(None))
        rows = self._session.exec(select(KeyRow).where(*valid))
        now = self._now()
        found = (
            CallerKey(id=row.id, name=row.name, digest=row.digest, grants=plain(row.grants), expires_at=row.expires_at)
            for row in rows
            if row.expires_at is None or now < row.expires_at
        )
        return tuple(sorted(found, key=lambda key: key.id))

    def caller_roles(self) -> tuple[CallerRole, ...]:
        """Return the roles of people and groups, in a fixed order."""
        rows = self._session.exec(select(RoleBindingRow).order_by(col(RoleBindingRow.ordinal)))
        return tuple(
            decode_plain(
                CallerRole,
                {"subject": row.subject, "grant": {"role": row.role, "owner": row.owner, "region": row.region}},
            )
            for row in rows
        )

    def model_versions(self) -> Mapping[str, int]:
        """Map each model, retired ones included, to the version of its record."""
        return dict(self._session.exec(select(ModelRow.name, ModelRow.version)).all())

    def model_accesses(self, names: Collection[str]) -> Sequence[ModelAccess]:
        """Return the access of these models from their manifests. Nothing else of a manifest is read.

        A retired model is open as it was, or for its owner alone. Its callers count for no quota.
        """
        query = select(ModelRow.name, ModelRow.owner, ModelRow.manifest, ModelRow.retired)
        return [
            listed_access(
                name, owner, decode_plain(AccessSpec, plain(text)["spec"].get("access") or {}), retired=retired
            )
            for some in batches(names)
            for name, owner, text, retired in self._session.exec(query.where(self._among(col(ModelRow.name), some)))
        ]

    def access_bytes(self) -> AccessBytes:
        """Return the bytes of the entries of all models, and of all valid keys and roles, in an access list.

        Those of keys and roles are an upper bound, and of all, also of those that no list needs now.
        """
        models = self._session.exec(select(func.coalesce(func.sum(ModelRow.access_bytes), 0))).one()
        return AccessBytes(int(models), self._key_bytes() + self._role_bytes())

    def model_access_bytes(self, name: str) -> int:
        """Return the bytes of a model's entry; 0 if there is no such model."""
        return self._session.exec(select(ModelRow.access_bytes).where(ModelRow.name == name)).first() or 0

    def _key_bytes(self) -> int:
        row, ends = KeyRow, col(KeyRow.expires_at)
        size = func.sum(func.length(row.name) + func.length(row.grants) + BYTES_OF_A_KEY)
        valid = (col(row.kind) == "key", col(row.revoked_at).is_(None), or_(ends.is_(None), ends > self._now()))
        return int(self._session.exec(select(func.coalesce(size, 0)).where(*valid)).one())

    def _role_bytes(self) -> int:
        row = RoleBindingRow
        texts = func.length(row.role) + func.length(row.owner) + func.length(row.region)
        size = func.sum(MOST_BYTES_OF_A_CHARACTER * func.length(row.subject) + texts + BYTES_OF_A_ROLE)
        return int(self._session.exec(select(func.coalesce(size, 0))).one())

    def note_access_content(self, region: str, digest: str, *, known: AccessRevision) -> int:
        """Return the revision of a region's list with this content: a later one if its content is new.

        `known` is the list that the region had in the snapshot of the store which the content was read from. StaleWrite
        if it has another one by now: that may have later content.
        """
        self._writing(None)
        row = self._region_row(region)
        if row.digest == digest:
            return row.revision
        if AccessRevision(revision=row.revision, digest=row.digest) != known:
            msg = (
                f"the access list of region {region!r} is {row.revision} by now, and was {known.revision} when the new "
                "one was read; read it again"
            )
            raise StaleWrite(msg)
        row.digest, row.revision = digest, row.revision + 1
        self._add(row)
        return row.revision

    def raise_access_revision(self, region: str, *, above: int) -> None:
        """Start the numbers of one region's lists above `above` from now on.

        Those of other regions keep their numbers.
        """
        self._writing(None)
        row = self._region_row(region)
        if row.revision <= above:
            row.revision = above + 1
            self._add(row)

    def note_region_access(self, region: str, *, revocations: int) -> None:
        """Store that a region goes by a list without the first `revocations` revoked keys.

        An earlier claim changes nothing.
        """
        self._writing(None)
        row = self._region_row(region)
        if row.revocations is None or row.revocations < revocations:
            row.revocations = revocations
            self._add(row)

    def regions_without_key(self, revocation: int) -> frozenset[str]:
        """Return the regions that go by a list without the key that was revoked at this position."""
        query = select(RegionAccessRow.region).where(col(RegionAccessRow.revocations) >= revocation)
        return frozenset(self._session.exec(query))

    def note_access_settings(self, *, policies: str, issuer: TokenIssuer | None, version: int) -> None:
        """Store the operator's policies and the identity provider from the API's settings.

        They replace stored ones of an earlier version only.

        The keys are deleted if the provider is another one.
        """
        self._writing(None)
        row = self._list_row()
        if row.version is not None and version <= row.version:
            return
        text = None if issuer is None else issuer.model_dump_json()
        former = None if row.issuer is None else decode(TokenIssuer, row.issuer)
        if issuer is None or former is None or former.issuer != issuer.issuer:
            row.signing_keys = row.signing_keys_at = None
        row.policies, row.issuer, row.version = policies, text, version
        self._add(row)

    def note_signing_keys(self, issuer: str, keys: Sequence[Mapping[str, Any]], at: datetime) -> None:
        """Store the public keys of the identity provider, unless the provider has changed since."""
        self._writing(None)
        row = self._list_row()
        if row.issuer is not None and decode(TokenIssuer, row.issuer).issuer == issuer:
            row.signing_keys, row.signing_keys_at = json.dumps(list(keys)), at
            self._add(row)

    def _list_row(self) -> AccessListRow:
        return self._get(AccessListRow, THE_LIST) or AccessListRow(id=THE_LIST, policies="")

    def _region_row(self, region: str) -> RegionAccessRow:
        return self._get(RegionAccessRow, region) or RegionAccessRow(region=region, revision=0, digest="")
