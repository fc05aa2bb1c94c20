"""Tables of keys, roles, owners, access lists and the audit."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint

from ipnext.store.tables.row import Row, model_key, number_field, ordinal_field, text_field, time_field


class AuditRow(Row, table=True):
    """An entry of the audit; triggers refuse to change or delete one."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_at", "at"),
        Index("ix_audit_entries_who_id", "who_id", "sequence"),
        Index("ix_audit_entries_who_name", "who_name", "sequence"),
        Index("ix_audit_entries_action", "action", "sequence"),
        Index("ix_audit_entries_object_name", "object_name", "sequence"),
        Index("ix_audit_entries_model", "model", "sequence"),
    )

    sequence: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    at: datetime = time_field()
    who_kind: str = text_field()
    who_id: str = text_field()
    who_name: str = text_field()
    said: str | None = text_field(default=None)
    source: str | None = text_field(default=None)
    action: str = text_field()
    operation: str | None = text_field(default=None)
    policy: str | None = text_field(default=None)
    object_kind: str = text_field()
    object_name: str | None = text_field(default=None)
    model: str | None = text_field(default=None)
    owner: str | None = text_field(default=None)
    outcome: str = text_field()
    before: str | None = text_field(default=None)
    after: str | None = text_field(default=None)
    reason: str | None = text_field(default=None)
    change_id: str | None = text_field(default=None)
    request_id: str = text_field()
    left_out: int | None = number_field(default=None)
    prev_hash: str = text_field()
    hash: str = text_field()


class KeyRow(Row, table=True):
    """An API key, a session or a ticket.

    `digest` and `proof_key` are of the secret, `parent` is the key that it acts for. `revocation` is the position of a
    key's revocation among those of all keys.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("id"),
        Index("ix_api_keys_kind", "kind", "ordinal"),
        Index("ix_api_keys_name", "name", "ordinal"),
        Index("ix_api_keys_expires_at", "expires_at"),
        Index("ix_api_keys_parent", "parent"),
    )

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    name: str = text_field()
    kind: str = text_field()
    digest: str = text_field()
    proof_key: str = text_field()
    grants: str = text_field()
    parent: str | None = text_field(default=None)
    created_at: datetime = time_field()
    created_by: str = text_field()
    expires_at: datetime | None = time_field(default=None)
    revoked_at: datetime | None = time_field(default=None)
    revocation: int | None = number_field(default=None)
    last_used_at: datetime | None = time_field(default=None)


class AccessListRow(Row, table=True):
    """The one row of content of the access lists that no other row has.

    Settings of the API, and keys of the provider.
    """

    __tablename__ = "access_list"

    id: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    version: int | None = number_field(default=None)
    """Of policies and issuer; None: no API has stored its own yet."""
    policies: str = text_field()
    issuer: str | None = text_field(default=None)
    signing_keys: str | None = text_field(default=None)
    signing_keys_at: datetime | None = time_field(default=None)


class RegionAccessRow(Row, table=True):
    """The access list of one region. `digest` is of its content without the revision.

    The list that the region was last found to go by leaves out the first `revocations` revoked keys; None: it was not
    found to go by any.
    """

    __tablename__ = "region_access"

    region: str = text_field(primary_key=True)
    revision: int = number_field()
    digest: str = text_field()
    revocations: int | None = number_field(default=None)


class RoleBindingRow(Row, table=True):
    """A role of a person or group of the identity provider.

    `subject` is `group:NAME`, `user:NAME`, `email:ADDRESS` or `sub:ID`.
    """

    __tablename__ = "role_bindings"
    __table_args__ = (UniqueConstraint("id"), UniqueConstraint("subject", "role", "owner", "region"))

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    subject: str = text_field()
    role: str = text_field()
    owner: str = text_field()
    region: str = text_field()
    created_at: datetime = time_field()
    created_by: str = text_field()


class OwnerRow(Row, table=True):
    """An owner as applied; its members are role bindings. `priority` repeats its manifest, for the planner."""

    __tablename__ = "owners"

    name: str = text_field(primary_key=True)
    manifest: str = text_field()
    priority: int = number_field()
    version: int = number_field()
    created_at: datetime = time_field()
    updated_at: datetime = time_field()


class OwnerClaimRow(Row, table=True):
    """The amount of one model in one quota of its owner; written with the manifest."""

    __tablename__ = "owner_claims"
    __table_args__ = (model_key(),)

    model: str = text_field(primary_key=True)
    quota: str = text_field(primary_key=True)
    amount: float
