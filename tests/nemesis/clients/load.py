"""The users: closed-loop clients of both gateways, which write down every request and what answered it."""

import asyncio
import random
import threading
import time
from collections.abc import Iterable
from typing import Any, Self

import aiohttp

from ipnext.names import GENERATION_HEADER, SNAPSHOTS_HEADER
from tests.nemesis.history import Recorder

TIMEOUT_SECONDS = 15.0
PAUSE_SECONDS = 0.08
"""Of a client between two requests, unless a run asks for another one."""
CLIENTS = 2
"""For each gateway and model. With the pause, some 80 requests a second in all."""


class Load:
    """Clients in one thread of their own. `answered` is when the last good request of each gateway and model began."""

    def __init__(
        self, recorder: Recorder, gateways: dict[str, str], models: Iterable[str], seed: int, pause_seconds: float
    ) -> None:
        self._recorder = recorder
        self._pause_seconds = pause_seconds
        self._gateways = gateways
        self._draw = random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), name="load")
        self._lock = threading.Lock()
        self._answered = {(region, model): 0.0 for model in models for region in gateways}
        self._failed = dict(self._answered)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(TIMEOUT_SECONDS + 5)

    def whole_since(self, at: float) -> bool:
        """Whether each gateway answered for each model to a request of after `at`, and failed at none since then."""
        with self._lock:
            return all(begun > max(at, self._failed[key]) for key, begun in self._answered.items())

    async def _ask(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            keys = [key for key in self._answered for _ in range(CLIENTS)]
            await asyncio.gather(*(self._client(session, n, *key) for n, key in enumerate(keys)))

    async def _client(self, session: aiohttp.ClientSession, number: int, region: str, model: str) -> None:
        process = f"load-{number}"
        while not self._ending.is_set():
            await self._once(session, process, region, model)
            await asyncio.sleep(self._pause_seconds)

    async def _once(self, session: aiohttp.ClientSession, process: str, region: str, model: str) -> None:
        op, x = self._recorder.op(), float(self._draw.randrange(1000))
        begun = time.monotonic()
        self._recorder.write("predict", "invoke", process, op, region=region, model=model, x=x)
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}
        try:
            async with session.post(f"{self._gateways[region]}/v2/models/{model}/infer", json=body) as answer:
                text = await answer.read()
                seen = (
                    _seen(answer.headers, await answer.json()) if answer.status == 200 else {"error": str(text[:200])}
                )
                kind = "ok" if answer.status == 200 else "fail"
                self._recorder.write("predict", kind, process, op, status=answer.status, **seen)
        except (aiohttp.ClientError, TimeoutError) as error:
            kind = "fail"
            self._recorder.write("predict", kind, process, op, status=0, error=repr(error)[:200])
        with self._lock:
            times = self._answered if kind == "ok" else self._failed
            times[region, model] = max(begun, times[region, model])


def _seen(headers: Any, answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer says of itself, and its data."""
    outputs = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
    return {
        "generation": int(headers[GENERATION_HEADER]),
        "snapshots": dict(pair.split("=") for pair in headers[SNAPSHOTS_HEADER].split(",")),
        "sum": outputs["sum"][0],
        "marks": outputs["marks"],
    }
