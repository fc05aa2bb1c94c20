"""The engines of a region as its router asks them: connections, loads, and what they say of themselves."""

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

import structlog

from ipnext.errors import HostLost
from serving.openai.engines.connection import EngineConnectionPool
from serving.openai.engines.load_balancer import EngineLoads, EngineReport
from serving.openai.engines.proof import ForeignAnswers
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.routing.sync_policy import HostCandidate
from serving.routing.table import GenerationRoute

POLL_SECONDS: Final = 0.5
REPORT_LIMIT_SECONDS: Final = 2.0
ALIVE_SECONDS: Final = 1.0
"""An engine that lost a request, and does not say for so long that it is well, is gone."""
_NAMES: Final = {
    "running": b"\nvllm:num_requests_running",
    "waiting": b"\nvllm:num_requests_waiting",
    "kv_use": b"\nvllm:kv_cache_usage_perc",
}


class EngineRegistry:
    """All engines of the table. Those that a request has a choice between are asked for their metrics twice a second."""

    def __init__(self, loads: EngineLoads | None = None, *, region: str = "") -> None:
        self.loads = loads or EngineLoads(time.monotonic)
        self.foreign = ForeignAnswers(region)
        self._pools: dict[str, EngineConnectionPool] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._drains: Mapping[str, float] = {}
        self._last: dict[str, asyncio.TimerHandle] = {}
        """Of engines that are here no more: when what they still answer is cut."""

    async def ask(
        self, url: str, method: str, path: str, headers: Mapping[str, str], body: bytes | bytearray
    ) -> EngineAnswer:
        """Send a request to an engine; its answer once it has begun. EngineLost."""
        pool = self._pools.get(url)
        if pool is None:
            pool = self._pools[url] = EngineConnectionPool(url)
        return await pool.ask(method, path, headers, body)

    def note_foreign(self, route: GenerationRoute, candidate: HostCandidate) -> str:
        """Count an answer of an engine that is not the one of the table, and leave that out for a while. Returns what is wrong."""
        self.foreign.note(route.model, route.generation)
        self.loads.note_lost(candidate.url)
        msg = f"{candidate.url} does not answer as {route.answers_as[candidate.url]}, the engine of snapshot {candidate.snapshot}"
        structlog.get_logger().error("another engine answered", model=route.model, reason=msg)
        return msg

    async def is_gone(self, url: str) -> bool:
        """Return whether an engine does not say at once that it is well."""
        with suppress(EngineLost, TimeoutError):
            async with asyncio.timeout(ALIVE_SECONDS):
                try:
                    answer = await self.ask(url, "GET", "/health", {}, b"")
                except EngineLost as error:
                    if not error.reused:
                        return True
                    answer = await self.ask(url, "GET", "/health", {}, b"")
            answer.cancel()
            return answer.status != 200  # HTTP's OK
        return True

    async def check_alive(self, url: str) -> None:
        """HostLost if an engine is gone that had a request: the request may be why, and goes to no other one."""
        if not await self.is_gone(url):
            return
        msg = f"{url} ended while it had this request, which is sent to no other engine"
        raise HostLost(msg)

    def keep(self, urls: Mapping[str, float], *, chosen_among: Collection[str]) -> None:
        """These are the engines now. The others are forgotten, and have nothing new from here on.

        `urls`: URL -> how long its answers may go on once it is here no more, in seconds. What is left then is cut.
        `chosen_among`: those whose load decides something. A page of vLLM's metrics costs its server 10 ms of processor time.
        """
        loop = asyncio.get_running_loop()
        for url in self._polls.keys() - set(chosen_among):
            self._polls.pop(url).cancel()
        for url in chosen_among:
            if url not in self._polls:
                self._polls[url] = loop.create_task(self._follow(url))
        for url in self._drains.keys() - urls.keys():
            self._last[url] = loop.call_later(self._drains[url], self._cut, url)
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
        """Follow none."""
        self.keep({}, chosen_among=())
        for last in self._last.values():
            last.cancel()

    def _cut(self, url: str) -> None:
        """It left a drain ago: whoever still has an answer from it sees that it has no end."""
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
        answer = await self.ask(url, "GET", "/metrics", {}, b"")
        text = await answer.rest()
        if answer.status == 200:  # HTTP's OK
            self.loads.note_report(url, report_of(text))


def report_of(text: bytes) -> EngineReport:
    """What vLLM's metrics say, the sum of its engines' requests and the fullest cache. Names that are missing count 0."""
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
