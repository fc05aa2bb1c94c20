"""Steady load on the gateways while the platform works, and the record of every answer."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from demo.dataset import Interactions
from demo.session import ClientThread
from ipnext.names import GENERATION_HEADER, SNAPSHOTS_HEADER

DATATYPES: Mapping[str, str] = {"int64": "INT64", "float32": "FP32"}


def request_body(rows: Interactions) -> dict[str, Any]:
    """Return a V2 request in JSON for some rows."""
    return {
        "inputs": [
            {"name": n, "shape": list(a.shape), "datatype": DATATYPES[str(a.dtype)], "data": a.ravel().tolist()}
            for n, a in rows.tensors().items()
        ]
    }


def output(answer: Mapping[str, Any], name: str) -> np.ndarray[Any, np.dtype[Any]]:
    """One output of a V2 answer in JSON, in its shape."""
    tensor = next(t for t in answer["outputs"] if t["name"] == name)
    return np.array(tensor["data"]).reshape(tensor["shape"])


@dataclass
class Answers:
    """What came back.

    A mixed answer is one whose parts bear different training stamps, or whose proof differs from the first proof seen
    for its generation.
    """

    requests: int = 0
    failed: int = 0
    mixed: int = 0
    by_generation: Counter[str] = field(default_factory=Counter)
    by_region: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    latencies_seconds: list[float] = field(default_factory=list)
    proofs: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, int] = field(default_factory=dict)

    def count_failure(self, cause: str) -> None:
        """Count a request without a good answer; the first twenty causes are kept."""
        self.requests += 1
        self.failed += 1
        if len(self.failures) < 20:
            self.failures.append(cause)

    def count_answer(self, region: str, headers: Mapping[str, str], body: Mapping[str, Any], seconds: float) -> None:
        """Count an answer and look whether it is of one generation."""
        generation, proof = headers.get(GENERATION_HEADER, "?"), headers.get(SNAPSHOTS_HEADER, "?")
        stamps = {int(stamp) for stamp in output(body, "stamps").ravel()}
        self.requests += 1
        self.by_generation[generation] += 1
        self.by_region[region] += 1
        self.latencies_seconds.append(seconds)
        one_stamp = len(stamps) == 1 and self.stamps.setdefault(generation, min(stamps)) in stamps
        one_proof = self.proofs.setdefault(generation, proof) == proof and generation == str(body.get("model_version"))
        self.mixed += not (one_stamp and one_proof)


class SteadyLoad(ClientThread):
    """Asks every gateway for small batches at a steady rate, in a thread of its own, from enter to exit.

    `rate` is requests a second to each gateway.
    """

    def __init__(self, gateways: Mapping[str, str], model: str, rows: Interactions, *, rate: float = 25.0) -> None:
        super().__init__("steady-load")
        self.answers = Answers()
        self._urls = {region: f"{url}/v2/models/{model}/infer" for region, url in gateways.items()}
        self._bodies = [request_body(rows.rows(slice(i, i + 8))) for i in range(0, min(len(rows), 512), 8)]
        self._interval = 1.0 / rate

    async def run(self) -> None:
        """Send requests to every gateway, at the rate."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(*(self._ask_steadily(session, region) for region in self._urls))

    async def _ask_steadily(self, session: aiohttp.ClientSession, region: str) -> None:
        """Open loop: a slow answer does not slow the asking down."""
        running: set[asyncio.Task[None]] = set()
        due, turn = time.monotonic(), 0
        while not self.stopping.is_set():
            task = asyncio.create_task(self._ask(session, region, self._bodies[turn % len(self._bodies)]))
            running.add(task)
            task.add_done_callback(running.discard)
            turn, due = turn + 1, due + self._interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*running)

    async def _ask(self, session: aiohttp.ClientSession, region: str, body: Mapping[str, Any]) -> None:
        began = time.monotonic()
        try:
            async with session.post(self._urls[region], json=body) as answer:
                if answer.status != 200:
                    self.answers.count_failure(f"{region}: HTTP {answer.status} {(await answer.text())[:200]}")
                    return
                content = await answer.json()
                self.answers.count_answer(region, answer.headers, content, time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.answers.count_failure(f"{region}: {type(error).__name__} {error}")


async def _score(urls: Sequence[str], rows: Interactions, batch: int) -> list[np.ndarray[Any, np.dtype[Any]]]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        limit = asyncio.Semaphore(4)

        async def one(url: str, start: int) -> np.ndarray[Any, np.dtype[Any]]:
            async with limit:
                body = request_body(rows.rows(slice(start, start + batch)))
                async with session.post(url, json=body) as answer:
                    answer.raise_for_status()
                    return output(await answer.json(), "score").astype(np.float32)

        starts = range(0, len(rows), batch)
        return [np.concatenate(await asyncio.gather(*(one(url, start) for start in starts))) for url in urls]


def served_scores(
    gateways: Mapping[str, str], model: str, rows: Interactions, *, batch: int
) -> Mapping[str, np.ndarray[Any, np.dtype[Any]]]:
    """Scores [n] of all rows over HTTP, by region. Raises aiohttp.ClientResponseError on any answer but 200."""
    urls = [f"{url}/v2/models/{model}/infer" for url in gateways.values()]
    return dict(zip(gateways, asyncio.run(_score(urls, rows, batch)), strict=True))
