"""Access to predictions: `spec.access` of a manifest, and the list by which regions check requests.

The control plane makes a list for each region of all models, and of the keys and roles that may ask those that need a
credential there. It has digests of keys, no keys.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from ipnext.model.access.rights import Grant, KeyId, Scope
from ipnext.model.value import Name, Value, WrittenValue

PredictionAccess = Literal["open", "authenticated"]
"""`open`: anyone may call it. `authenticated`: only callers with a credential that permits it."""

LIST_REVISIONS: Final = 2**62
"""Revisions of access lists are below this number, so that no component states one that another cannot count above."""


class RateLimit(WrittenValue):
    """A token bucket: a steady rate, and how much may come at once after a quiet time."""

    requests_per_second: float = Field(gt=0, le=1_000_000)
    burst: int | None = Field(default=None, ge=1, le=10_000_000)
    """Requests at once; left out: those of one second, at least one."""

    @property
    def capacity(self) -> float:
        """Requests that a full bucket lets through at once."""
        return float(self.burst or max(1, math.ceil(self.requests_per_second)))


class PredictionLimits(WrittenValue):
    """What callers may ask of one model in each region. None: as much as they like."""

    per_key: RateLimit | None = None
    """Of each API key, or each person."""
    per_owner: RateLimit | None = None
    """Of all keys and persons of one owner together."""


class AccessSpec(WrittenValue):
    """Who may ask a model for predictions."""

    predictions: PredictionAccess = "open"
    callers: tuple[Scope, ...] = Field(default=(), max_length=1000)
    """Owners whose keys may ask beside those of the model's own; `*`: every valid key that has a role over models."""
    limits: PredictionLimits = PredictionLimits()

    @model_validator(mode="after")
    def _knows_its_callers(self) -> Self:
        if self.predictions == "open" and (self.callers or self.limits != PredictionLimits()):
            field = "callers" if self.callers else "limits"
            msg = f"{field}: goes with predictions: authenticated; an open model does not know who asks"
            raise ValueError(msg)
        return self

    @property
    def is_open(self) -> bool:
        """Whether anyone may request predictions."""
        return self.predictions == "open"


class ModelAccess(Value):
    """A model in the list."""

    model: Name
    owner: Name
    access: AccessSpec


def listed_access(model: str, owner: str, access: AccessSpec, *, retired: bool) -> ModelAccess:
    """Return a model's entry in the lists. A retired one is open as it was, or for its owner alone."""
    return ModelAccess(
        model=model, owner=owner, access=AccessSpec(predictions=access.predictions) if retired else access
    )


def listed_bytes(entry: Value) -> int:
    """Return the bytes of an entry in a list, with the comma behind it."""
    return len(entry.model_dump_json().encode()) + 1


class CallerKey(Value):
    """An API key in the list: `digest` is the SHA-256 of its secret."""

    id: KeyId
    name: Name
    digest: str
    grants: tuple[Grant, ...]
    expires_at: datetime | None = None


class CallerRole(Value):
    """A role of a person or a group of the identity provider."""

    subject: str
    grant: Grant


class TokenIssuer(Value):
    """The identity provider, and its public keys at the last read."""

    issuer: str
    audience: str
    name_claim: str | None = None
    groups_claim: str = "groups"
    keys: tuple[Mapping[str, Any], ...] = ()
    """JSON Web Keys (RFC 7517)."""
    valid_until: float = 0.0
    """The expiry of the keys unless they are read again; Unix time in seconds."""


class AccessList(Value):
    """All data that decides whether a request may be answered.

    A later revision replaces an earlier one of its region.
    """

    revision: int = Field(ge=0, lt=LIST_REVISIONS)
    """Its order among the lists of one region; other regions may have the same content under another number."""
    digest: str = Field(default="", max_length=64)
    """SHA-256 of the content, by which its sender knows it again."""
    models: tuple[ModelAccess, ...] = ()
    keys: tuple[CallerKey, ...] = ()
    roles: tuple[CallerRole, ...] = ()
    tokens: TokenIssuer | None = None
    """None: there is no identity provider, so every token is invalid."""
    policies: str = ""
    """Cedar policies of the operator, added to the built-in ones."""


class AccessRevision(Value):
    """The list that a region goes by."""

    revision: int = Field(ge=0, lt=LIST_REVISIONS)
    """0: there is none."""
    digest: str = Field(default="", max_length=64)
    """As in the list."""

    @classmethod
    def of(cls, access: AccessList | None) -> "AccessRevision":
        """Return the revision of a list; None: of no list."""
        return cls(revision=0) if access is None else cls(revision=access.revision, digest=access.digest)


class AccessWithdrawal(Value):
    """Ends the lists of a router below a revision: it goes by none of them until it gets a later one."""

    below: int = Field(ge=1, lt=LIST_REVISIONS)
    open: tuple[Name, ...] = ()
    """Models that the later list names as open. All others answer nobody."""


class KeyUseReport(Value):
    """The last use of API keys for predictions, at a router or in a region."""

    uses: Mapping[KeyId, float] = Field(default_factory=dict)
    """Unix time in seconds."""

    @classmethod
    def newest(cls, reports: Iterable["KeyUseReport"]) -> "KeyUseReport":
        """Return all reports as one."""
        found: dict[KeyId, float] = {}
        for report in reports:
            for key_id, at in report.uses.items():
                found[key_id] = max(at, found.get(key_id, at))
        return cls(uses=found)
