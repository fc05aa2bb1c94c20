"""Accounts of the artifact store's bytes, and the results of a collection. Pure values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, NamedTuple

from ipnext.errors import QuotaExceeded
from ipnext.model.access.owner import ARTIFACTS, OwnerManifest
from ipnext.model.access.rights import Principal
from ipnext.model.value import Value, WrittenValue

_OWNER: Final = "owner/"
"""Prefix of the accounts of owners; those of uploaders begin with the kind of the principal."""

SETTING: Final = "IPNEXT_ARTIFACT_BYTES"


class Allowance(NamedTuple):
    """An account, and its limit in bytes."""

    account: str
    limit: int
    source: str
    """The quota or the setting that sets the limit."""

    @property
    def is_of_owner(self) -> bool:
        """Whether the account is an owner's."""
        return is_owners(self.account)

    @property
    def subject(self) -> str:
        """The account's name in messages."""
        kind, _, name = self.account.partition("/")
        return f"{kind} {name!r}"

    def check(self, used: int, more: int, *, field: str = "blobs") -> None:
        """Check that the account has room for `more` further bytes. `field`: the request's field with the bytes.

        Raises:
            QuotaExceeded: it has no room for them.
        """
        if used + more > self.limit:
            allowed = f"at most {max(0, self.limit - used)}"
            msg = (
                f"{field}: {more} bytes; {self.subject} uses {used} of {self.limit} bytes of artifacts and manifests "
                f"({self.source}); allowed: {allowed}"
            )
            raise QuotaExceeded(msg, field=field, value=more, allowed=(allowed,))


def account_of(owner: str) -> str:
    """Return the account of an owner."""
    return f"{_OWNER}{owner}"


def is_owners(account: str) -> bool:
    """Return whether an account is an owner's."""
    return account.startswith(_OWNER)


def owner_of_account(account: str) -> str | None:
    """Return the owner of an account; None for an uploader's account."""
    return account.removeprefix(_OWNER) if is_owners(account) else None


def owners_allowance(owner: str, manifest: OwnerManifest | None, *, default: int) -> Allowance:
    """Return an owner's allowance: its quota, else the platform's setting."""
    quota = None if manifest is None else manifest.spec.quotas.artifact_bytes
    if quota is None:
        return Allowance(account_of(owner), default, SETTING)
    return Allowance(account_of(owner), quota, f"quotas.{ARTIFACTS}")


def uploaders_allowance(principal: Principal, *, default: int) -> Allowance:
    """Return a principal's allowance for uploads without a model.

    Until publication they count for the uploader, over all sessions of a key.
    """
    return Allowance(principal.account, default, SETTING)


Kind = Literal["blob", "manifest", "snapshot", "event", "change", "plan", "replan", "source version"]
"""`snapshot`: its row stays, and names no blobs any more. `manifest`: its file in the artifact store."""


class CollectInput(Value):
    """The input of a scheduled collection."""


class CollectedItem(WrittenValue):
    """One thing that a collection removes, or would."""

    kind: Kind
    name: str
    """Digest; of a snapshot MODEL/PART/NUMBER."""
    size_bytes: int = 0
    reason: str


class CollectedClass(WrittenValue):
    """What a collection removes of one class, or would."""

    kind: Kind
    count: int
    size_bytes: int
    """Blobs and manifests: in the artifact store. Snapshots: of their files, of which others may have some. Other
    classes: of the texts in the database, about."""
    reasons: Mapping[str, int]
    """Reason -> number of items."""


class CollectionView(WrittenValue):
    """What a collection removed, or would remove."""

    dry_run: bool
    blobs: int
    size_bytes: int
    """Of these blobs."""
    snapshots: int
    """Snapshots whose bytes are given free; the blobs of these go a grace time later."""
    kept_blobs: int
    unused_since: datetime
    """What was in use since then stays."""
    classes: tuple[CollectedClass, ...] = ()
    """Sums by class, of those that have any."""
    items: tuple[CollectedItem, ...] = ()
    """The first snapshots, manifests and blobs."""
    unfinished: bool = False
    """Whether the pass ended at its time limit: the next one goes on."""

    @property
    def summary(self) -> str:
        """The collection in one line."""
        would = "would be " if self.dry_run else ""
        rows = sum(each.count for each in self.classes if each.kind not in {"blob", "manifest", "snapshot"})
        return (
            f"{self.blobs} blobs of {self.size_bytes} bytes {would}removed, {self.snapshots} snapshots "
            f"{would}released, {rows} rows of the history {would}deleted, {self.kept_blobs} blobs kept"
            f"{'; the next pass goes on' if self.unfinished else ''}"
        )
