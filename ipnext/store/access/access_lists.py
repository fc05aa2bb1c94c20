"""Sources of the lists by which regions check predictions (`ipnext.model.access.predictions`), and their revisions."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlmodel import col, func, select

from ipnext.model.access.predictions import AccessRevision, AccessSpec, CallerKey, CallerRole, ModelAccess, TokenIssuer
from ipnext.model.wire import decode, decode_plain
from ipnext.store.tables import (
    AccessListRow,
    KeyRow,
    ModelRow,
    RegionAccessRow,
    RoleBindingRow,
)
from ipnext.store.unit_of_work import UnitOfWork, batches, plain

THE_LIST: Final = 1


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
            ModelAccess(
                model=name, owner=owner, access=_access_of(plain(text)["spec"].get("access") or {}, retired=retired)
            )
            for some in batches(names)
            for name, owner, text, retired in self._session.exec(query.where(self._among(col(ModelRow.name), some)))
        ]

    def note_access_content(self, region: str, digest: str) -> int:
        """Return the revision of a region's list with this content: a later one if its content is new."""
        self._writing(None)
        row = self._region_row(region)
        if row.digest != digest:
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


def _access_of(document: Mapping[str, Any], *, retired: bool) -> AccessSpec:
    found = decode_plain(AccessSpec, document)
    return AccessSpec(predictions=found.predictions) if retired else found
