"""A request that hosts did not answer is made again as a whole: elsewhere if they refused it, else where it was lost.

A host that ended while it had the request may have ended by it. If the host had no other one, the request waits for that very
host, which its agent starts again, and goes to another one only if it is not back in two seconds; if it had, the request is tried on
one other host at once (docs/decisions/0042).
Used by routers, and by hosts that execute a graph.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ipnext.errors import HostLost, QueryOfDeath, Unavailable
from serving.routing.host_call import Attempt, HostEnded, RetryOnOtherHost
from serving.routing.lost_requests import Record

ATTEMPTS: Final = 2
"""A request that meets a host without its generation, or no host, is tried once more as a whole."""
RETURN_SECONDS: Final = 2.0
"""The longest wait for a host that ended, if the deadline is later. One that its agent forks again is back by then; one that is not
may be lost for good, with its machine."""
MARGIN_SECONDS: Final = 0.1
"""Before the deadline, in which the client is told."""
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.5

T = TypeVar("T")


async def retried(  # noqa: C901, PLR0912 - each way in which an attempt ends
    attempt: Callable[[], Awaitable[T]],
    asked: Attempt,
    *,
    again: Callable[[bool], None],
    subject: str,
    record: Record | None = None,
    whom: str = "host",
) -> T:
    """Return what an attempt gives.

    `again` is called before each further attempt; true: it counts as a retry, false: it goes on waiting for a host. `record`
    remembers requests that were lost; None: the caller's caller does.

    Raises:
        Unavailable: no host took it.
        HostLost: its host ended, and was not back in time.
        QueryOfDeath: its host ended, came back and ended again.
    """
    before = record.check() if record is not None else None
    reason, first, left = "", None, ATTEMPTS
    while left:
        left -= 1
        try:
            answer = await attempt()
        except RetryOnOtherHost as error:
            reason = str(error)
            if left:
                again(True)
        except HostEnded as ended:
            if before is not None and record is not None:
                record.lost(deadly=True)
                msg = f"part {ended.part!r}: {ended.url} ended while it had this request, as {before.url} had less than a minute ago"
                raise QueryOfDeath(msg) from ended
            if first is None and ended.in_company:
                first, left = ended, max(left, 1)
                again(True)
                continue
            if record is not None:
                record.lost(ended.part, ended.url)
            again(True)
            return await _by_the_same_host(attempt, asked, ended, again, record, elsewhere=first is None)
        except QueryOfDeath:  # of a host that executes the graph
            if record is not None:
                record.lost(deadly=True)
            raise
        else:
            if before is not None and record is not None:
                record.answered()
            return answer
    if first is not None:
        if record is not None:
            record.lost(first.part, first.url)
        return await _by_the_same_host(attempt, asked, first, again, record, elsewhere=False)
    msg = f"{subject}: no {whom} answers; {reason}"
    raise Unavailable(msg)


async def _by_the_same_host(
    attempt: Callable[[], Awaitable[T]],
    asked: Attempt,
    ended: HostEnded,
    again: Callable[[bool], None],
    record: Record | None,
    *,
    elsewhere: bool,
) -> T:
    """What the host gives that the request was lost at, once it is back; if it is not, what another one gives if `elsewhere`."""
    asked.only = {**asked.only, ended.part: ended.url}
    limit = min(asked.deadline - MARGIN_SECONDS, time.monotonic() + RETURN_SECONDS)
    pause, reason = _FIRST_PAUSE, "it is not back"
    while time.monotonic() + pause < limit:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        again(False)
        try:
            return await _asked_again(attempt, ended, record)
        except RetryOnOtherHost as error:
            reason = str(error)
    if elsewhere:
        del asked.only[ended.part]
        again(False)
        try:
            return await _asked_again(attempt, ended, record)
        except RetryOnOtherHost as error:
            reason = str(error)
    msg = f"part {ended.part!r}: {ended.url} ended while it had this request, and is not back; {reason}"
    raise HostLost(msg)


async def _asked_again(attempt: Callable[[], Awaitable[T]], ended: HostEnded, record: Record | None) -> T:
    """An attempt after a host ended. QueryOfDeath if another one ends, or the same again."""
    try:
        answer = await attempt()
    except HostEnded as twice:
        if record is not None:
            record.lost(deadly=True)
        msg = (
            f"part {ended.part!r}: {ended.url} ended while it had this request, and {twice.url} when it was asked again"
        )
        raise QueryOfDeath(msg) from twice
    if record is not None:
        record.answered()
    return answer
