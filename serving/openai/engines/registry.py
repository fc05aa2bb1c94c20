"""The engines of a region, for its router: connections, loads, and the engines' own reports."""

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

import structlog

from ipnext.errors import AnswerTooLarge, HostLost
from serving.http.limits import AnswerBudget
from serving.openai.engines.connection import EngineConnectionPool
from serving.openai.engines.load_balancer import EngineLoads, EngineReport
from serving.openai.engines.proof import ForeignAnswers
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.routing.sync_policy import HostCandidate
from serving.routing.table import GenerationRoute

POLL_SECONDS: Final = 0.5
REPORT_LIMIT_SECONDS: Final = 2.0
REPORT_BYTES: Final = 4 * 2**20
"""Limit of an engine's metrics, or of its answer to a health check."""
ALIVE_SECONDS: Final = 1.0
"""Time limit of the health check of an engine that lost a request; if it fails, the engine counts as gone."""
_NAMES: Final = {
    "running": b"\nvllm:num_requests_running",
    "waiting": b"\nvllm:num_requests_waiting",
    "kv_use": b"\nvllm:kv_cache_usage_perc",
}


class EngineRegistry:
    """All engines of the table. Those that requests are balanced over are polled for their metrics twice a second."""

    def __init__(
        self, loads: EngineLoads | None = None, *, region: str = "", answers: AnswerBudget | None = None
    ) -> None:
        """`answers` counts the bytes of all answers that are kept."""
        self.answers = answers or AnswerBudget()
        self.loads = loads or EngineLoads(time.monotonic)
        self.foreign = ForeignAnswers(region)
        self._pools: dict[str, EngineConnectionPool] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._drains: Mapping[str, float] = {}
        self._last: dict[str, asyncio.TimerHandle] = {}
        """Timers of removed engines, which end their remaining answers."""

    async def ask(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | bytearray,
        answers: AnswerBudget | None = None,
    ) -> EngineAnswer:
        """Send a request to an engine; return its answer once it has begun.

        `answers` and errors as in EngineConnectionPool.
        """
        pool = self._pools.get(url)
        if pool is None:
            pool = self._pools[url] = EngineConnectionPool(url, self.answers)
        return await pool.ask(method, path, headers, body, answers)

    async def _ask_itself(self, url: str, path: str) -> EngineAnswer:
        """Ask an engine about itself, whether or not other answers leave room. EngineLost, AnswerTooLarge."""
        return await self.ask(url, "GET", path, {}, b"", AnswerBudget(REPORT_BYTES, 2 * REPORT_BYTES))

    def note_foreign(self, route: GenerationRoute, candidate: HostCandidate) -> str:
        """Count an answer of an engine other than the table's, and eject that one for a while; return the reason."""
        self.foreign.note(route.model, route.generation)
        self.loads.note_lost(candidate.url)
        msg = (
            f"{candidate.url} does not answer as {route.answers_as[candidate.url]}, "
            f"the engine of snapshot {candidate.snapshot}"
        )
        structlog.get_logger().error("another engine answered", model=route.model, reason=msg)
        return msg

    async def is_gone(self, url: str) -> bool:
        """Return whether an engine fails an immediate health check."""
        with suppress(EngineLost, TimeoutError):
            async with asyncio.timeout(ALIVE_SECONDS):
                try:
                    answer = await self._ask_itself(url, "/health")
                except EngineLost as error:
                    if not error.reused:
                        return True
                    answer = await self._ask_itself(url, "/health")
            answer.cancel()
            return answer.status != 200  # HTTP's OK
        return True

    async def check_alive(self, url: str) -> None:
        """Raise HostLost if an engine with a request is gone.

        The request may be the cause, and is sent to no other engine.
        """
        if not await self.is_gone(url):
            return
        msg = f"{url} ended while it had this request, which is sent to no other engine"
        raise HostLost(msg)

    def keep(self, urls: Mapping[str, float], *, chosen_among: Collection[str]) -> None:
        """Replace the set of engines. Removed ones get no new requests.

        `urls`: URL -> seconds for which its answers may continue once it is removed; those left then are ended.
        `chosen_among`: engines whose load affects a choice. A page of vLLM's metrics costs its server 10 ms of
        processor time.
        """
        loop = asyncio.get_running_loop()
        for url in self._polls.keys() - set(chosen_among):
            self._polls.pop(url).cancel()
        for url in chosen_among:
            if url not in self._polls:
                self._polls[url] = loop.create_task(self._follow(url))
        for url in self._drains.keys() - urls.keys():
            self._last[url] = loop.call_later(self._drains[url], self._cut_off, url)
        for url in self._last.keys() & urls.keys():
            self._last.pop(url).cancel()
        for url, pool in tuple(self._pools.items()):
            pool.left = url not in urls
            if pool.left:
                pool.close()
            if pool.left and url not in self._last:
                del self._pools[url]
        self._drains = dict(urls)
        self.loads.forget(urls)

    def close(self) -> None:
        """Drop all engines."""
        self.keep({}, chosen_among=())
        for last in self._last.values():
            last.cancel()

    def _cut_off(self, url: str) -> None:
        """End the remaining answers of an engine whose drain time after its removal has passed."""
        del self._last[url]
        pool = self._pools.pop(url, None)
        if pool is not None and (count := pool.cut()):
            structlog.get_logger().warning("answers cut, their engine has left", url=url, answers=count)

    async def _follow(self, url: str) -> None:
        while True:
            with suppress(EngineLost, TimeoutError):
                async with asyncio.timeout(REPORT_LIMIT_SECONDS):
                    await self._look(url)
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, url: str) -> None:
        answer = await self._ask_itself(url, "/metrics")
        try:
            text = await answer.rest()
        except AnswerTooLarge:
            structlog.get_logger().warning("metrics of an engine are too large", url=url, limit_bytes=REPORT_BYTES)
            return
        if answer.status == 200:  # HTTP's OK
            self.loads.note_report(url, report_of(text))


def report_of(text: bytes) -> EngineReport:
    """Parse vLLM's metrics: the sum of its engines' requests and the fullest cache. Missing series count as 0."""
    found = {name: _values(text, series) for name, series in _NAMES.items()}
    return EngineReport(sum(found["running"]), sum(found["waiting"]), max(found["kv_use"], default=0.0))


def _values(text: bytes, series: bytes) -> list[float]:
    values: list[float] = []
    text = b"\n" + text
    place = text.find(series)
    while place >= 0:
        end = text.find(b"\n", place + 1)
        line = text[place + 1 : end if end >= 0 else len(text)]
        if line[len(series) - 1 : len(series)] in (b"{", b" "):
            with suppress(ValueError):
                values.append(float(line.rpartition(b" ")[2]))
        place = text.find(series, place + 1)
    return values
