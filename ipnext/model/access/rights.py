"""Access rights: roles over owners and regions, principals, and API keys as they are listed."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from ipnext.model.value import NAME_PATTERN, Name, Value, WrittenValue

ANY: Final = "*"
"""In a grant: every owner, or every region."""

Scope = Annotated[str, StringConstraints(pattern=rf"^\*$|{NAME_PATTERN}", max_length=63)]
"""The name of an owner or a region, or `*` for all."""

KeyId = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{16}$")]

KEPT_SECONDS: Final = 2.0
"""Time for which a proved credential is not looked up again; a revocation is in force after it."""

LONGEST_SECONDS: Final = 10 * 366 * 86_400


class Role(StrEnum):
    """What a principal may do; each role may do what the ones before it may."""

    CALLER = "caller"
    VIEWER = "viewer"
    PUBLISHER = "publisher"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """Position among the roles; a higher one includes the lower ones."""
        return list(Role).index(self)


class Grant(Value):
    """A role over an owner's models, or over all (`*`). With a region it is about that region and no models."""

    role: Role
    owner: Scope = ANY
    region: Scope = ANY


KeyKind = Literal["key", "session", "ticket"]
"""`session`: a browser that has logged in. `ticket`: logs a browser in, once."""

PrincipalKind = Literal["key", "session", "ticket", "user", "local"]
"""`user`: a person with a token of the identity provider. `local`: any caller, if authentication is off."""


class Principal(Value):
    """A caller with its proved identity and its grants."""

    kind: PrincipalKind
    id: str
    name: str
    grants: tuple[Grant, ...] = ()
    expires_at: datetime | None = None
    """Expiry of the token that proved a user."""
    acts_for: str = ""
    """The key that a session or ticket acts for. Policies see that key."""

    @property
    def text(self) -> str:
        """The name in logs and in the audit: `key deployer`."""
        return f"{self.kind} {self.name}"

    @property
    def account(self) -> str:
        """By what quotas and shares are counted: the key behind a session or ticket, else the principal itself."""
        return f"key/{self.acts_for}" if self.acts_for else f"{self.kind}/{self.id}"

    @property
    def sees_machines(self) -> bool:
        """Whether the principal may see machines' paths, process ids and addresses, since it operates the platform."""
        lowest = Role.OPERATOR.rank
        return any(g.role.rank >= lowest and g.owner == ANY and g.region == ANY for g in self.grants)

    @property
    def publishes_for_all(self) -> bool:
        """Whether the principal may publish models of every owner, or authentication is off."""
        lowest = Role.PUBLISHER.rank
        return self.kind == "local" or any(
            g.role.rank >= lowest and g.owner == ANY and g.region == ANY for g in self.grants
        )

    @property
    def does_everything(self) -> bool:
        """Whether the principal administers the whole platform, or authentication is off."""
        return self.kind == "local" or Grant(role=Role.ADMIN) in self.grants


class ApiKey(Value):
    """A key as it is stored. The store has no secret: `digest` is the SHA-256 of the secret's 256 random bits.

    `proof_key` is derived from it as well (`ipnext.access.proof`); regions do not get it.
    """

    id: KeyId
    name: Name
    kind: KeyKind
    digest: str
    proof_key: str
    grants: tuple[Grant, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revocation: int | None = None
    """Position of its revocation among those of all keys; None: it is valid, or no key."""
    last_used_at: datetime | None = None

    def is_valid(self, at: datetime) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


class KeyRequest(WrittenValue):
    """A key to create: one role, over one owner's models or all, or over one region."""

    name: Name
    role: Role
    owner: Scope = ANY
    region: Scope = ANY
    expires_in_seconds: int | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """Seconds until the key expires; none: it does not."""


class KeyView(WrittenValue):
    """A key as it is listed: never its secret."""

    id: KeyId
    name: Name
    role: Role
    owner: Scope
    region: Scope
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """Within a minute."""


class RevokedKey(KeyView):
    """A revoked key, and the regions whose gateways may still take it."""

    regions_behind: tuple[Name, ...]
    """Regions that were not yet found to go by an access list without the key."""


class CreatedKey(KeyView):
    """A new key with its text, which is given out this once."""

    key: str


class SessionView(WrittenValue):
    """Who is logged in, by what grants, until when."""

    name: str
    kind: PrincipalKind
    grants: tuple[Grant, ...]
    expires_at: datetime | None = None


class TicketView(WrittenValue):
    """Whose login link it is."""

    name: str
    """Of the key that made it."""
    grants: tuple[Grant, ...]
    expires_at: datetime | None = None
    by_platform: bool
    """Made by `ipnext dev` as it started. Every other one was made by who has the key, and may have been sent to
    anyone."""


class Ticket(WrittenValue):
    """Logs a browser in, once: the page takes it from its address, behind `#ticket=`."""

    ticket: str
    expires_at: datetime


def audited_key(key: ApiKey) -> dict[str, Any]:
    """Return the audit's record of a key, session or ticket: neither its text nor a digest of it."""
    return key.model_dump(mode="json", include={"id", "name", "kind", "grants", "expires_at", "revoked_at"})


def key_view(key: ApiKey) -> KeyView:
    """Return the listed form of a key with one grant."""
    grant = key.grants[0]
    shown = key.model_dump(
        include={"id", "name", "created_at", "created_by", "expires_at", "revoked_at", "last_used_at"}
    )
    return KeyView(role=grant.role, owner=grant.owner, region=grant.region, **shown)


class PlatformProof(WrittenValue):
    """That an API knows a key (`ipnext.access.proof`)."""

    port: int
    """Where the API listens; 0: on a Unix socket."""
    proof: str
    """HMAC-SHA256 (hex)."""
