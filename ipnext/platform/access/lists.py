"""Sends every region the list by which it checks predictions: the principals that may call the models.

API and workers each run a publisher, so that a revocation reaches the regions while one of them restarts. Content is
made from a snapshot of the store, and blocks no writer. It gets its revision in a short unit of work, unless the region
has got another list since that snapshot: so a later revision never has older content, whichever process sends it.

All regions get the same content: all models, and the keys and roles that may ask those of them that need a credential.
What an agent says of its list concerns its own region: another region's lists keep their numbers, and a region has
the list if it has its digest, whatever the number.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

import structlog

from ipnext.access.key_sets import usable_documents
from ipnext.access.policy import permits_more
from ipnext.access.signing_keys import FRESH_SECONDS, LASTS_SECONDS
from ipnext.errors import StaleWrite, Unavailable
from ipnext.login.identity_provider import ProviderClient
from ipnext.model.access.predictions import AccessList, AccessRevision, ModelAccess, TokenIssuer
from ipnext.platform.access.listed_callers import ListedCallers, asking_owners
from ipnext.platform.region_poller import RegionPoller
from ipnext.store.access.access_lists import AccessListState
from ipnext.store.repository import Repository
from ipnext.store.store import Store

LOOK_SECONDS: Final = 1.0
"""Interval of the checks of the store. A revocation is in force in every reachable region after one interval and a
few milliseconds."""
CHECK_SECONDS: Final = 5.0
"""Interval of the checks that a region still has the list: with a new state directory it has none."""
KEYS_AGAIN_SECONDS: Final = 5.0
"""Interval of the retries of reading the provider's keys."""
MOST_AHEAD: Final = 2**32
"""How far above the lists that were sent an agent may say that its own is: more than a restored database is ever
behind. At one such claim each CHECK_SECONDS the numbers of a region last for more than a hundred years."""
_ATTEMPTS: Final = 3
"""Of one look. Each that fails has another publisher make a list meanwhile."""
_HOUR: Final = 3600.0
_MOST_THREADS: Final = 32


class AccessListRegions(Protocol):
    """The operations of the infrastructure that a publisher uses."""

    def regions(self) -> tuple[str, ...]:
        """Return the names of the regions."""

    def put_access(self, region: str, access: AccessList) -> AccessRevision:
        """Put a list in force; return the one that is. StaleWrite if a later one is; Unavailable."""

    def access_revision(self, region: str) -> AccessRevision:
        """Return revision and digest of the list in force. Raises Unavailable."""


@dataclass(slots=True)
class _Sent:
    """The list of a region, as far as is known."""

    has: AccessRevision | None = None
    """The list that it was found to go by."""
    checked_at: float = 0.0
    without: int | None = None
    """Number of revoked keys that this list leaves out, as it was stored for the region."""
    raised_at: float | None = None
    """When its numbers were raised last."""
    under_way: bool = False
    silent: bool = False


class _Basis(NamedTuple):
    """All that the lists are made of. While it is equal, so are they."""

    marks: tuple[Any, ...]
    state: AccessListState
    lists: Mapping[str, AccessRevision]
    """As they are stored."""


class AccessPublisher:
    """Makes the lists from the store and sends them. Run it as a context."""

    def __init__(
        self,
        store: Store,
        infrastructure: AccessListRegions,
        *,
        provider: ProviderClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read public keys from `provider`; if None, another process reads them, or there is none."""
        self._store, self._infrastructure, self._provider, self._clock = store, infrastructure, provider, clock
        self._lists: Mapping[str, AccessList] = {}
        self._revocations = 0
        """Number of revoked keys that the lists leave out."""
        self._basis: _Basis | None = None
        self._mark: str | None = None
        self._models: dict[str, tuple[int, ModelAccess]] = {}
        self._sent: dict[str, _Sent] = {}
        self._keys_asked_at: float | None = None
        self._poller = RegionPoller("access-lists", self.look, every_seconds=LOOK_SECONDS, threads=_MOST_THREADS)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Check and send in the background while the context is open.

        While the store is away, the present list stays in force.
        """
        try:
            with self._poller.running():
                yield
        finally:
            if self._provider is not None:
                self._provider.close()

    def close(self) -> None:
        """Begin no sending any more."""
        self._poller.close()

    def look(self) -> list[Future[None]]:
        """Make the lists if anything changed, and begin to send them to the regions that lack them.

        Raises Unavailable.
        """
        self._refresh()
        if self._provider is not None and self._keys_are_due():
            self._poller.submit(self._read_keys, self._provider)
        begun = []
        for region, access in self._lists.items():
            sent = self._sent.setdefault(region, _Sent())
            if not sent.under_way and self._is_due(sent, access):
                sent.under_way = True
                begun.append(self._poller.submit(self._send, region, sent, access, self._revocations))
        return begun

    # the lists

    def _refresh(self) -> None:
        """Make the lists if anything changed. If other publishers are quicker, the next look tries again."""
        for _ in range(_ATTEMPTS):
            if self._is_made():
                return
        structlog.get_logger().info("access_list_read_again")

    def _is_made(self) -> bool:
        """Make the lists, unless those that there are have all of the store; False if a publisher was quicker."""
        mark = self._store.revision()
        if mark == self._mark:
            return True
        with self._store.read() as unit:
            basis = _Basis(unit.access_marks(), unit.access_list_state(), unit.region_lists())
            if basis == self._basis:
                self._mark = mark
                return True
            revocations, content = unit.revocations(), self._build_content(unit)
        try:
            numbers = self._number(content.digest, basis.lists)
        except StaleWrite:
            return False
        self._lists = {
            region: content.model_copy(update={"revision": revision}) for region, revision in numbers.items()
        }
        self._revocations = revocations
        new = {region: AccessRevision.of(access) for region, access in self._lists.items()}
        self._basis = basis._replace(lists={**basis.lists, **new})
        self._mark = mark
        return True

    def _number(self, digest: str, known: Mapping[str, AccessRevision]) -> Mapping[str, int]:
        """Map each region to the revision of its list with this content. `known` are the lists when it was read.

        StaleWrite if a region has another list by now. No unit of work is begun if none has a new one.
        """
        none = AccessRevision(revision=0)
        former = {region: known.get(region, none) for region in self._infrastructure.regions()}
        if all(one.digest == digest for one in former.values()):
            return {region: one.revision for region, one in former.items()}
        with self._store.begin() as unit:
            return {region: unit.note_access_content(region, digest, known=one) for region, one in former.items()}

    def _build_content(self, unit: Repository) -> AccessList:
        """Return the content of all regions' lists, which has no revision yet."""
        self._read_models(unit)
        state, everyone = unit.access_list_state(), ListedCallers(unit.caller_keys(), unit.caller_roles())
        accesses = tuple(self._models[name][1] for name in sorted(self._models))
        owners = asking_owners(accesses)
        callers = everyone if owners and permits_more(state.policies) else everyone.of(owners)
        return _add_digest(
            AccessList(revision=0, models=accesses, tokens=_tokens(state), policies=state.policies, **callers._asdict())
        )

    def _read_models(self, unit: Repository) -> None:
        """Read the models. Manifests of an unchanged version are not read again."""
        versions = unit.model_versions()
        changed = [name for name, version in versions.items() if self._models.get(name, (None,))[0] != version]
        for found in unit.model_accesses(changed):
            self._models[found.model] = (versions[found.model], found)
        for gone in self._models.keys() - versions.keys():
            del self._models[gone]

    # the regions

    def _is_due(self, sent: _Sent, access: AccessList) -> bool:
        late = sent.has != AccessRevision.of(access) or sent.without != self._revocations
        return late or self._clock() - sent.checked_at >= CHECK_SECONDS

    def _send(self, region: str, sent: _Sent, access: AccessList, revocations: int) -> None:
        wanted, former = AccessRevision.of(access), sent.has
        sent.has = None
        try:
            has = self._in_force(region, access, checks=former == wanted)
            if has == wanted:
                sent.has, sent.checked_at, sent.silent = has, self._clock(), False
                self._note(region, sent, revocations)
            else:
                self._rise_above(region, sent, access, has.revision)
        except Unavailable as error:
            if not sent.silent:
                structlog.get_logger().warning("access_list_not_sent", region=region, error=error.message)
            sent.silent = True
        finally:
            sent.under_way = False

    def _in_force(self, region: str, access: AccessList, *, checks: bool) -> AccessRevision:
        """Return the list that the region goes by, after it was sent this one if it has another one or an older one."""
        if checks:
            has = self._infrastructure.access_revision(region)
            if has.revision >= access.revision:
                return has
        try:
            return self._infrastructure.put_access(region, access)
        except StaleWrite:
            return self._infrastructure.access_revision(region)

    def _rise_above(self, region: str, sent: _Sent, access: AccessList, has: int) -> None:
        """Handle a region's other list.

        Another publisher sent it, and the next look reads it; or the database is an older copy.

        In the second case the lists of this region get numbers above it. Raises Unavailable if it has an older one, or
        if no list that was ever sent can have its number.
        """
        with self._store.read() as unit:
            mine = unit.region_lists().get(region, AccessRevision(revision=0)).revision
        if mine > access.revision:
            return
        if not access.revision <= has <= mine + MOST_AHEAD:
            msg = (
                f"the agent of region {region!r} goes by access list {has}, and was sent {access.revision}; "
                f"allowed: {access.revision} to {mine + MOST_AHEAD}"
            )
            raise Unavailable(msg)
        if sent.raised_at is None or self._clock() - sent.raised_at >= CHECK_SECONDS:
            sent.raised_at = self._clock()
            structlog.get_logger().warning("region_has_a_later_access_list", region=region, has=has, known=mine)
            with self._store.begin() as unit:
                unit.raise_access_revision(region, above=has)

    def _note(self, region: str, sent: _Sent, revocations: int) -> None:
        """Store once how many revoked keys the region's list leaves out, for the answers to those who revoke them."""
        if sent.without != revocations:
            with suppress(Unavailable):  # repeated at the next look
                with self._store.begin() as unit:
                    unit.note_region_access(region, revocations=revocations)
                sent.without = revocations

    # the identity provider's keys

    def _keys_are_due(self) -> bool:
        if self._basis is None or self._basis.state.issuer is None:
            return False
        state = self._basis.state
        age = None if state.signing_keys_at is None else (datetime.now(UTC) - state.signing_keys_at).total_seconds()
        asked = self._keys_asked_at
        early = asked is not None and self._clock() - asked < KEYS_AGAIN_SECONDS
        return not early and (age is None or age > FRESH_SECONDS)

    def _read_keys(self, provider: ProviderClient) -> None:
        self._keys_asked_at = self._clock()
        try:
            keys = usable_documents(provider.read(provider.discover().jwks).get("keys"))
            with self._store.begin() as unit:
                unit.note_signing_keys(provider.issuer, keys, datetime.now(UTC))
        except Unavailable as error:
            structlog.get_logger().warning("identity_provider_keys_not_read", error=error.message)
        finally:
            self._keys_asked_at = self._clock()


def _add_digest(content: AccessList) -> AccessList:
    """Return the list with its digest. It has no revision yet."""
    return content.model_copy(update={"digest": hashlib.sha256(content.model_dump_json().encode()).hexdigest()})


def _tokens(state: AccessListState) -> TokenIssuer | None:
    """Return the provider with its keys.

    Their expiry is a full hour, so that reading the same keys again makes no new list.
    """
    if state.issuer is None:
        return None
    read_at = state.signing_keys_at
    ends = 0.0 if read_at is None else (read_at.timestamp() // _HOUR + 1) * _HOUR + LASTS_SECONDS
    return state.issuer.model_copy(update={"keys": state.signing_keys, "valid_until": ends})
