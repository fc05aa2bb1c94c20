"""Audit entries in addition to the units of work: refusals, and requests that change something outside the store.

Refusals are limited for each principal and for this process, so that a flood of them neither fills a disk nor slows
requests down.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio
import structlog
from starlette.types import Message, Scope, Send

from ipnext.access.acting import ACTING, RequestAuthority
from ipnext.api.requests.guarded_route import SAFE_METHODS
from ipnext.errors import Forbidden, IPnextError, Unauthenticated
from ipnext.model.access.audit import AuditNote
from ipnext.model.access.rights import Principal
from ipnext.store.access.audit import audit_note
from ipnext.store.store import Store

BURST: Final = 10
"""Refusals of one principal that are recorded at once."""
EVERY_SECONDS: Final = 60.0
"""Interval of further recorded refusals."""
BURST_OF_ALL: Final = 100
EVERY_SECONDS_OF_ALL: Final = 5.0
"""The same for all principals of this process together: at most 17,280 entries a day, some 20 MB."""
PRINCIPALS: Final = 1024
"""Principals whose refusals are counted, those that were refused last."""


@dataclass(slots=True)
class _Bucket:
    """Refusals that may be recorded now, and those that were not."""

    left: float
    at: float
    left_out: int = 0

    def refill(self, now: float, every: float, most: float) -> None:
        self.left, self.at = min(most, self.left + (now - self.at) / every), now


ITSELF: Final = Principal(kind="local", id="api", name="ipnext api")
"""The API process, for entries about itself."""


class RefusalRecorder:
    """Decides which refusals are recorded. Any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._all = _Bucket(BURST_OF_ALL, clock())
        self._of: OrderedDict[str, _Bucket] = OrderedDict()
        self._forgotten = 0
        """Unrecorded refusals of principals that are not counted any more."""

    def take(self, principal: Principal) -> int | None:
        """Return the unrecorded refusals before this one, which is to be recorded.

        None if it is not recorded either.
        """
        with self._lock:
            now = self._clock()
            bucket = self._bucket(principal.account, now)
            bucket.refill(now, EVERY_SECONDS, BURST)
            self._all.refill(now, EVERY_SECONDS_OF_ALL, BURST_OF_ALL)
            if min(bucket.left, self._all.left) < 1:
                bucket.left_out += 1
                return None
            bucket.left, self._all.left = bucket.left - 1, self._all.left - 1
            found, bucket.left_out = bucket.left_out + self._forgotten, 0
            self._forgotten = 0
            return found

    def give_back(self, principal: Principal, left_out: int) -> None:
        """Count a refusal, and those before it, as unrecorded: its record failed."""
        with self._lock:
            self._bucket(principal.account, self._clock()).left_out += left_out + 1

    @property
    def pending(self) -> int:
        """Unrecorded refusals that no entry has reported yet."""
        with self._lock:
            return self._forgotten + sum(bucket.left_out for bucket in self._of.values())

    def _bucket(self, key: str, now: float) -> _Bucket:
        bucket = self._of.setdefault(key, _Bucket(BURST, now))
        self._of.move_to_end(key)
        while len(self._of) > PRINCIPALS:
            self._forgotten += self._of.popitem(last=False)[1].left_out
        return bucket


class Recorder:
    """Writes the entries that no unit of work writes."""

    def __init__(self, store: Store, refusals: RefusalRecorder | None = None) -> None:
        self._store = store
        self.refusals = refusals or RefusalRecorder()

    async def record_refusal(self, acting: RequestAuthority, error: Forbidden) -> None:
        """Record that a principal was not allowed to do something."""
        await self._record_refusal(acting, error.policy or "", error.message)

    async def refused_credential(self, acting: RequestAuthority, error: IPnextError) -> None:
        """Record the use of an expired or revoked credential.

        An invalid one leaves no entry: its principal is unknown.
        """
        if isinstance(error, Unauthenticated) and isinstance(error.ended, Principal):
            who = RequestAuthority(error.ended, acting.source, "authenticate", said=acting.said, trail=acting.trail)
            await self._record_refusal(who, "credentials-end", error.message)

    async def _record_refusal(self, acting: RequestAuthority, policy: str, reason: str) -> None:
        left_out = self.refusals.take(acting.principal)
        if left_out is None:
            return
        who = replace(acting, policy=policy)
        note = AuditNote(reason=reason, left_out=left_out or None)
        try:
            await anyio.to_thread.run_sync(self._store.record, who, "refused", note)
        except IPnextError as error:  # the refusal is in force, whether it is recorded or not
            self.refusals.give_back(acting.principal, left_out)
            structlog.get_logger().warning("refusal_not_recorded", code=error.code, error=error.message)

    async def close(self) -> None:
        """Record how many refusals of this process are unrecorded and not reported yet."""
        left_out = self.refusals.pending
        if not left_out:
            return
        who = RequestAuthority(ITSELF, "", "refusals.left-out", "refusals-are-bounded")
        note = AuditNote(reason="the API process ends; so many refusals had no entry", left_out=left_out)
        try:
            await anyio.to_thread.run_sync(self._store.record, who, "refused", note)
        except IPnextError as error:
            structlog.get_logger().warning("refusals_not_recorded", left_out=left_out, code=error.code)

    def recording(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that records a request which changed something, unless a unit of work has done so.

        Endpoints record such requests beforehand (`record_asked`); this catches those that forget it.
        """
        if scope["method"] in SAFE_METHODS:
            return send

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                acting: RequestAuthority = scope["state"]["acting"]
                trail = acting.trail
                if not trail.units and not trail.asked and not trail.only_reads:
                    await anyio.to_thread.run_sync(self._store.record, acting, "done")
            await send(message)

        return send_recorded


def record_asked(store: Store, **note: Any) -> None:
    """Record an action outside the store that is about to begin, in a separate unit.

    If that fails, the action must not happen. Raises Unavailable. `note` is as for `Repository.note_audit`.
    """
    acting = ACTING.get()
    if acting is not None:
        store.record(acting, "asked", audit_note(**note))


def operation_of(scope: MutableMapping[str, Any]) -> str:
    """Return method and path of a request, with the names of the path's parameters.

    They are left out if it was not routed.
    """
    route = scope.get("route")
    path: str = getattr(route, "path", None) or scope["path"]
    return f"{scope['method']} {path}"
