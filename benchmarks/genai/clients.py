"""Clients of the OpenAI benchmarks.

A closed loop over kept-alive connections, with the time to the first piece of each answer.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from serving.openai.engines.connection import EngineConnectionPool

CHAT: Final = "/v1/chat/completions"


@dataclass
class Loop:
    """What a loop saw, in seconds."""

    first: list[float] = field(default_factory=list)
    """To the first piece of each answer."""
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def add(self, other: "Loop") -> None:
        """Put another loop's figures to these."""
        self.first += other.first
        self.whole += other.whole
        self.tokens += other.tokens
        self.seconds += other.seconds


def request(text: str, *, tokens: int, stream: bool) -> bytes:
    """Return the body of a chat request."""
    body: dict[str, Any] = {"model": "llm", "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    if stream:
        body["stream"] = True
    return orjson.dumps(body)


def _nothing() -> None:
    pass


def run_loop(  # noqa: PLR0913 - all but two by keyword
    url: str,
    bodies: Iterator[bytes],
    *,
    clients: int,
    requests: int,
    tokens: int,
    before: bytes | None = None,
    on_begin: Callable[[], None] = _nothing,
) -> Loop:
    """`clients` ask one request after the other until `requests` are answered. RuntimeError for an answer but 200.

    `before`: a request that each asks before anything counts, so that all connections are made; `on_begin` is called
    after that.
    """
    import uvloop  # noqa: PLC0415 - of the extra that serves

    loop, left = Loop(), iter(range(requests))

    async def ask(pool: EngineConnectionPool) -> None:
        for _ in left:
            began = time.perf_counter()
            answer = await pool.ask("POST", CHAT, {"content-type": "application/json"}, next(bodies))
            first = time.perf_counter()
            text = await answer.rest()
            if answer.status != 200:
                msg = f"{url}: {answer.status} {text[:300]!r}"
                raise RuntimeError(msg)
            loop.first.append(first - began)
            loop.whole.append(time.perf_counter() - began)
            loop.tokens += tokens

    async def run() -> None:
        pool = EngineConnectionPool(url)
        if before is not None:
            await asyncio.gather(*(_asked(pool, before) for _ in range(clients)))
        on_begin()
        began = time.perf_counter()
        await asyncio.gather(*(ask(pool) for _ in range(clients)))
        loop.seconds = time.perf_counter() - began
        pool.close()

    uvloop.run(run())
    return loop


async def _asked(pool: EngineConnectionPool, body: bytes) -> None:
    await (await pool.ask("POST", CHAT, {"content-type": "application/json"}, body)).rest()
