"""Brings a region's access list to its router, and states which list the router goes by.

The router follows a file. If that cannot be written, the router gets the list by its control socket, and the file is
removed, so that a router which starts has no list rather than an old one. A router that still goes by an old list after
`access_stale_seconds` refuses all requests but those for models that the newest list names as open.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, Protocol

import structlog

from ipnext.errors import Unavailable
from ipnext.infra.router.access_file import AccessFile
from ipnext.model.access.predictions import AccessList, AccessRevision, AccessWithdrawal

FOLLOW_SECONDS: Final = 1.0
"""Longest wait of a new list's sender for the router, which applies it within milliseconds. The sender asks again."""
AGAIN_SECONDS: Final = 2.0
"""Interval at which a list is sent to a router that does not go by it."""
_PAUSE_SECONDS: Final = 0.01


class RouterControl(Protocol):
    """The operations of the region's routers that a delivery uses."""

    @property
    def access(self) -> AccessRevision:
        """The oldest list that a router goes by, as last reported."""

    async def look(self) -> None:
        """Read the state of all routers now."""

    async def put_access(self, access: AccessList) -> None:
        """Send all of them a list. Unavailable if one does not take it."""

    async def withdraw_access(self, withdrawal: AccessWithdrawal) -> None:
        """Have those with an older list refuse requests for all but open models, until they get another.

        Unavailable.
        """


class AccessDelivery:
    """The list of one region on its way to the router."""

    def __init__(
        self,
        file: AccessFile,
        router: RouterControl,
        *,
        stale_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._router = file, router
        self._stale_seconds, self._clock = stale_seconds, clock
        self._routed: frozenset[str] = frozenset()
        self._behind_since: float | None = None
        self._withdrawn = False
        self._pushed_at: float | None = None

    @property
    def in_force(self) -> AccessRevision:
        """The list that requests are checked by: that of the agent once the router goes by it, else the older one."""
        newest, followed = self._file.newest, self._router.access
        return newest if newest.revision < followed.revision else followed

    @property
    def behind_seconds(self) -> float | None:
        """Time since the router has gone by another list than the newest.

        None: it goes by the newest, or there is none.
        """
        return None if self._behind_since is None else self._clock() - self._behind_since

    async def put(self, access: AccessList, routed: Collection[str]) -> AccessRevision:
        """Take a list; return the one in force, which is this one once the router goes by it.

        StaleWrite if it is older.
        """
        self._file.put(access)
        self.publish(routed)
        deadline = self._clock() + FOLLOW_SECONDS
        if not self._file.is_published:
            await self._push()
        await self._router.look()
        while not self._note_followed() and self._clock() < deadline:
            await asyncio.sleep(_PAUSE_SECONDS)
            await self._router.look()
        return self.in_force

    def publish(self, routed: Collection[str]) -> None:
        """Write what is not written yet: the list as it was sent, and the router's file."""
        self._routed = frozenset(routed)
        self._file.save()
        self._file.publish(routed)
        self._note_followed()

    async def look(self) -> None:
        """Send the list to a router that goes by another one; after `stale_seconds` let that router refuse."""
        if self._note_followed():
            return
        if self._pushed_at is None or self._clock() - self._pushed_at >= AGAIN_SECONDS:
            await self._push()
            await self._router.look()
            if self._note_followed():
                return
        behind = self.behind_seconds
        if behind is None or behind < self._stale_seconds:
            return
        newest = self._file.newest.revision
        if not self._withdrawn:
            log = structlog.get_logger()
            log.error("old access list withdrawn", revision=self._router.access.revision, newest=newest, seconds=behind)
        with suppress(Unavailable):  # repeated soon
            await self._router.withdraw_access(
                AccessWithdrawal(below=newest, open=self._file.open_models(self._routed))
            )
            self._withdrawn = True

    def _note_followed(self) -> bool:
        newest = self._file.newest
        if newest.revision == 0 or self._router.access == newest:
            self._behind_since, self._withdrawn = None, False
            return True
        if self._behind_since is None:
            self._behind_since = self._clock()
        return False

    async def _push(self) -> None:
        self._pushed_at = self._clock()
        access = self._file.extract(self._routed)
        if access is not None:
            try:
                await self._router.put_access(access)
            except Unavailable as error:
                structlog.get_logger().warning("access list not taken, sent again soon", reason=error.message)
