"""The audit: who did something, from where, on which object, under which policy.

Each entry is sealed to the one before it. The store writes entries, the API exports them, clients verify them
(`ipnext.model.access.audit_chain`).
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, field_serializer

from ipnext.model.value import Sha256, Value, WrittenValue, canonical_json

GENESIS: Final = "0" * 64
"""`prev_hash` of the first entry."""

LONGEST_DOCUMENT: Final = 16_384
"""Bytes of the canonical JSON of a document that an entry contains. Of a larger one it has the SHA-256."""

LONGEST_REASON: Final = 2000
LONGEST_NAME: Final = 300

REDACTED: Final = "[redacted]"
_SECRET: Final = re.compile(
    r"(token|secret|passw(or)?d|passphrase|credential|api_?key|access_?key|private_?key)s?$", re.IGNORECASE
)
_USERINFO: Final = re.compile(r"(?<=://)[^/\s@]+@")

Outcome = Literal["done", "asked", "refused"]
"""`done`: committed with the entry. `asked`: permitted, written before another component carried it out. `refused`:
denied."""


class AuditWho(WrittenValue):
    """The principal as it was proved. `kind`: a `PrincipalKind`, as it was written."""

    kind: str
    id: str
    name: str


class AuditObject(WrittenValue):
    """What was acted on: `Model ranker`, `Freeze holidays`, `Fleet`."""

    kind: str
    name: str | None = None

    @property
    def text(self) -> str:
        """The object's text in lists."""
        return f"{self.kind} {self.name}" if self.name else self.kind


class AuditEntry(WrittenValue):
    """One entry. It is never changed and never deleted; a field without a value is absent from its JSON.

    Read from a database that somebody changed it has what is stored there: the verification says which entry it is.
    """

    sequence: int
    """Rises by one from 1, without gaps, in the order of the commits."""
    at: datetime | str = Field(union_mode="left_to_right")
    """Text if the database holds no time."""
    who: AuditWho
    said: str | None = None
    """Who the caller says that it asks for (`X-IPnext-User`); not proved."""
    source: str | None = None
    """Address of the client."""
    action: str
    operation: str | None = None
    """Method and path of the request, with names of parameters for their values."""
    policy: str | None = None
    object: AuditObject
    model: str | None = None
    owner: str | None = None
    outcome: str
    """An `Outcome`, as it was written."""
    before: str | None = None
    """Canonical JSON, or `sha256:` and the digest of that of a document of more than LONGEST_DOCUMENT bytes."""
    after: str | None = None
    reason: str | None = None
    change_id: str | None = None
    request_id: str
    left_out: int | str | None = None
    """Of a refusal: further refusals of this principal, before this one, that have no entry. Text if that is no
    number."""
    prev_hash: str
    hash: str

    @field_serializer("at")
    def _at(self, at: datetime | str) -> str:
        """Write UTC with six digits of a second: the hash depends on the text."""
        if isinstance(at, str):
            return at
        return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def plain(self) -> dict[str, Any]:
        """Return the entry as JSON data, in the form of an export."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class AuditHead(WrittenValue):
    """The newest entry: kept elsewhere, it is the anchor that a later verification needs.

    `sequence` 0: there is none.
    """

    sequence: int = Field(ge=0)
    hash: str


class AuditAnchor(AuditHead):
    """A head that was kept elsewhere, as an anchor."""

    hash: Sha256


class AuditNote(Value):
    """An endpoint's additions to the entry of its unit of work. A value of None comes from the request."""

    object: tuple[str, str] | None = None
    """Kind and name."""
    model: str | None = None
    owner: str | None = None
    before: str | None = None
    after: str | None = None
    reason: str | None = None
    change_id: str | None = None
    left_out: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the documents and the reason."""
        return sum(len(text.encode()) for text in (self.before, self.after, self.reason) if text)


def hash_of(entry: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of an exported entry without its `hash`.

    Raises:
        ValueError: the entry has a NaN.
    """
    text = canonical_json({name: value for name, value in entry.items() if name != "hash"})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seal(entry: AuditEntry) -> AuditEntry:
    """Return the entry with the hash of all its other fields."""
    return entry.model_copy(update={"hash": hash_of(entry.plain())})


def document_text(value: BaseModel | Mapping[str, Any] | None) -> str | None:
    """Return the text of a document for an entry, without secrets.

    A text over LONGEST_DOCUMENT bytes becomes its digest.
    """
    if value is None:
        return None
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    text = canonical_json(_without_secrets(plain)).encode("utf-8", "replace")
    if len(text) > LONGEST_DOCUMENT:
        return f"sha256:{hashlib.sha256(text).hexdigest()}"
    return text.decode()


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: REDACTED if isinstance(each, str) and _SECRET.search(str(name)) else _without_secrets(each)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    return _USERINFO.sub(f"{REDACTED}@", value) if isinstance(value, str) else value


AuditName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
"""The text of a filter."""
