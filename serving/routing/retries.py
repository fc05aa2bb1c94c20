"""Retries of requests that hosts did not answer.

Each repeats the whole request: on another host if the first refused it. If a host ended while it processed a request,
the request may be the cause. If the host had no other request, the request waits for that host, which its agent
restarts, and is sent to another only if the host is not back in two seconds. If the host had others, the request is
tried on one other host at once (docs/decisions/0042).

Used by routers, and by hosts that execute a graph.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ipnext.errors import HostLost, QueryOfDeath, Unavailable
from serving.routing.host_call import CallState, HostEnded, RetryOnOtherHost
from serving.routing.lost_requests import Record

ATTEMPTS: Final = 2
"""Attempts of a request. If a host lacks its generation, or no host answers, the whole request is retried once."""
RETURN_SECONDS: Final = 2.0
"""Longest wait for a host that ended, if the deadline is later. If its agent forks it again, it is back by then;
otherwise it may be lost for good, with its machine."""
MARGIN_SECONDS: Final = 0.1
"""Time before the deadline that is reserved for the answer to the client."""
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.5

T = TypeVar("T")


async def run_with_retry(  # noqa: C901, PLR0912 - each way in which an attempt ends
    attempt: Callable[[], Awaitable[T]],
    asked: CallState,
    *,
    again: Callable[[bool], None],
    subject: str,
    record: Record | None = None,
    whom: str = "host",
) -> T:
    """Return the result of an attempt that succeeds.

    `again` is called before each further attempt; true: it counts as a retry, false: the request keeps waiting for a
    host. `record` remembers lost requests; None if a caller further up does.

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
                msg = (
                    f"part {ended.part!r}: {ended.url} ended while it had this request, "
                    f"as {before.url} had less than a minute ago"
                )
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
            asked.convict_suspects()
            if before is not None and record is not None:
                record.note_answer()
            return answer
    if first is not None:
        if record is not None:
            record.lost(first.part, first.url)
        return await _by_the_same_host(attempt, asked, first, again, record, elsewhere=False)
    msg = f"{subject}: no {whom} answers; {reason}"
    raise Unavailable(msg)


async def _by_the_same_host(
    attempt: Callable[[], Awaitable[T]],
    asked: CallState,
    ended: HostEnded,
    again: Callable[[bool], None],
    record: Record | None,
    *,
    elsewhere: bool,
) -> T:
    """Retry on the host that lost the request, once it is back.

    If it is not and `elsewhere` is true, on another host.
    """
    asked.only = {**asked.only, ended.part: ended.url}
    limit = min(asked.deadline - MARGIN_SECONDS, time.monotonic() + RETURN_SECONDS)
    pause, reason = _FIRST_PAUSE, "it is not back"
    while time.monotonic() + pause < limit:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        again(False)
        try:
            return await _ask_again(attempt, ended, record)
        except RetryOnOtherHost as error:
            reason = str(error)
    if elsewhere:
        del asked.only[ended.part]
        again(False)
        try:
            return await _ask_again(attempt, ended, record)
        except RetryOnOtherHost as error:
            reason = str(error)
    msg = f"part {ended.part!r}: {ended.url} ended while it had this request, and is not back; {reason}"
    raise HostLost(msg)


async def _ask_again(attempt: Callable[[], Awaitable[T]], ended: HostEnded, record: Record | None) -> T:
    """Make an attempt after a host ended. QueryOfDeath if another host ends, or the same one again."""
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
        record.note_answer()
    return answer
