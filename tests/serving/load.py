"""Clients that ask a router without pause while a test changes what serves them, and what they saw."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from serving.protocol.v2 import decode_response, parse_header_length
from tests.waiting import PATIENCE_SECONDS, until

INFER = "/v2/models/click/infer"
NO_CONNECTION = 0
"""Stands for the status of a request that met no router, or one that ended."""


@dataclass(frozen=True)
class Answer:
    """What a client can tell about one answer. `used` is what the answer's data say, `proof` what its headers say."""

    status: int
    pin: str | None
    began: float
    """A time of time.monotonic."""
    seconds: float
    generation: int | None = None
    proof: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)

    @property
    def apart(self) -> int:
        """By how many snapshots the part furthest from the generation differs from it, as the data say."""
        return max((abs(number - self.generation) for number in self.used.values()), default=0)

    @property
    def mixed(self) -> bool:
        """More than one snapshot number took part; in these tests a generation has one number for all its parts."""
        return len(set(self.used.values())) > 1


class Load:
    """Clients in threads. `pins` are the generations that they ask for in turn; it may be replaced meanwhile."""

    def __init__(
        self, router: Any, request: Mapping[str, Any], *, clients: int = 4, deadline_ms: int | None = None
    ) -> None:
        self.answers: list[Answer] = []
        self.pins: tuple[str | None, ...] = (None,)
        self._router = router
        self._request = request
        self._headers = {} if deadline_ms is None else {"x-ipnext-deadline-ms": str(deadline_ms)}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def statuses(self, *, since: float = 0.0) -> Counter[int]:
        """How many answers of each status there are to requests that began after `since`."""
        return Counter(answer.status for answer in self.since(since))

    def since(self, began: float) -> list[Answer]:
        """The answers to requests that began after a time of time.monotonic."""
        return [answer for answer in self.answers if answer.began > began]

    def more(self, count: int, *, good: Callable[[Answer], bool] = lambda _: True) -> None:
        """Wait until so many more `good` answers came."""
        now, start = time.monotonic(), len(self.answers)
        until(lambda: sum(map(good, self.answers[start:])) >= count, why=lambda: f"only {self.statuses(since=now)}")

    def _send(self, number: int) -> None:
        for turn in itertools.count(number):
            if self._stop.is_set():
                return
            pins = self.pins
            self.answers.append(self._ask(pins[turn % len(pins)]))

    def _ask(self, pin: str | None) -> Answer:
        headers = self._headers if pin is None else {**self._headers, "x-ipnext-generation": pin}
        began = time.monotonic()
        try:
            response = self._router.infer(INFER, self._request, **headers)
        except httpx.TransportError:
            time.sleep(0.02)
            return Answer(NO_CONNECTION, pin, began, 0.0)
        return _read(response, pin, began)


def _read(response: httpx.Response, pin: str | None, began: float) -> Answer:
    seconds = time.monotonic() - began
    if response.status_code != 200:
        return Answer(response.status_code, pin, began, seconds)
    length = parse_header_length(response.headers["inference-header-content-length"])
    body = decode_response(bytearray(response.content), length)
    rows = {tuple(row) for row in body.outputs["stamps"].data.tolist()}
    assert len(rows) == 1, "rows of one answer come from one snapshot of each part"
    [(dense, sparse)] = rows
    proof = dict(pair.split("=") for pair in response.headers["x-ipnext-snapshots"].split(","))
    numbers = {part: int(number) for part, number in proof.items()}
    generation = int(response.headers["x-ipnext-generation"])
    assert body.parameters["snapshots"] == response.headers["x-ipnext-snapshots"]
    assert (body.model_version, body.parameters["generation"]) == (str(generation), generation)
    return Answer(200, pin, began, seconds, generation, numbers, {"dense": dense, "sparse": sparse})
