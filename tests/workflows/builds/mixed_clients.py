"""Clients of a platform of two builds.

Predictions, publishes and the stream of events, each without a pause while builds change.
"""

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from ipnext.client import Client
from ipnext.errors import IPnextError, Unavailable
from ipnext.login.credentials import find_credential
from ipnext.model.lifecycle.changes.change import ChangeState
from tests.waiting import PATIENCE_SECONDS, until
from tests.workflows.builds.next_build import ADDED

IDLE_SECONDS = 6.0
"""Between two publishes that no step of the story waits for: the processors are for the components, too."""
ASK_SECONDS = 0.2
"""The same between two predictions of a client."""
AGAIN_SECONDS = 0.05
"""The same between two streams of events."""


class Load:
    """Clients that ask for predictions all the time, one at each gateway, and what they were answered."""

    def __init__(self, gateways: Sequence[str], model: str) -> None:
        self.answers: Counter[int | str] = Counter()
        self.seen: Counter[tuple[str, str]] = Counter()
        """(gateway, region whose hosts answered) -> good answers."""
        self.bad: list[str] = []
        self._gateways = gateways
        self._model = model
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(gateway,)) for gateway in gateways]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def more(self, count: int) -> None:
        """Wait for so many more answers at each gateway."""
        before = self._of_each()

        def found() -> bool:
            assert not self.bad, self.bad[:3]
            return all(now >= then + count for now, then in zip(self._of_each(), before, strict=True))

        until(found, why=lambda: f"{self.answers} {self.bad[:3]}")

    def _of_each(self) -> list[int]:
        seen = list(self.seen.items())
        return [sum(n for (at, _), n in seen if at == gateway) for gateway in self._gateways]

    def _ask(self, gateway: str) -> None:
        """Send no request twice: one that is lost with two hosts within a minute is refused as a query of death."""
        numbers = itertools.count(1.0)
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._ended.is_set():
                tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [next(numbers)]}
                try:
                    answer = client.post(f"{gateway}/v2/models/{self._model}/infer", json={"inputs": [tensor]})
                except httpx.TransportError as error:
                    self._note(type(error).__name__, repr(error))
                    continue
                self._note(answer.status_code, answer.text)
                if answer.status_code == 200:
                    self._check(answer.json())
                    self.seen[gateway, answer.headers["x-ipnext-region"]] += 1
                time.sleep(ASK_SECONDS)

    def _note(self, status: int | str, told: str) -> None:
        self.answers[status] += 1
        if status != 200:
            self.bad.append(f"{status}: {told[:300]}")

    def _check(self, answer: Mapping[str, Any]) -> None:
        first, second = next(out["data"] for out in answer["outputs"] if out["name"] == "marks")
        if first != second:
            self.bad.append(f"parts of two generations: {first} {second}")


class Publisher:
    """Publishes all the time, one change after the other, without a pause while a step of the story waits for one.

    An API that does not answer is asked again with the same id.
    """

    def __init__(
        self, api: str, model: str, snapshots: tuple[Mapping[str, Path], ...], *, why: Callable[[], str]
    ) -> None:
        self.taken: list[str] = []
        """Changes that the API has acknowledged."""
        self.ended: dict[str, ChangeState] = {}
        self.failures: list[BaseException] = []
        self._api = api
        self._model = model
        self._snapshots = snapshots
        self._why = why
        self._stopped = threading.Event()
        self._awaited = threading.Event()
        """Whether the next publish begins without a pause."""
        self._thread = threading.Thread(target=self._publish_all)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._awaited.set()
        self._thread.join(PATIENCE_SECONDS)

    def one_more(self) -> None:
        """Wait for the end of a publish that begins from now on. The next one begins at once, during the next step."""
        begun = len(self.taken)

        def found() -> bool:
            assert not self.failures, (self.failures, self._why())
            self._awaited.set()
            return any(change in self.ended for change in self.taken[begun + 1 :])

        until(found, why=lambda: f"{self.taken} {self.ended}\n{self._why()}")

    def _publish_all(self) -> None:
        try:
            with _client(self._api) as client:
                while not self._stopped.is_set():
                    self._publish(client, len(self.taken))
        except (IPnextError, AssertionError) as error:
            self.failures.append(error)

    def _publish(self, client: Client, number: int) -> None:
        change_id, snapshots = f"{self._model}-{number}", self._snapshots[number % len(self._snapshots)]
        again(lambda: client.publish(self._model, snapshots, change_id=change_id))
        self.taken.append(change_id)
        end = again(lambda: client.wait_change(change_id, PATIENCE_SECONDS))
        self.ended[change_id] = end.state
        assert end.state is ChangeState.DONE, end
        self._awaited.wait(IDLE_SECONDS)
        self._awaited.clear()


class Listener:
    """Reads the stream of events as a browser does.

    What is no field or event of its own it ignores, and it comes back by its last id.
    """

    def __init__(self, api: str) -> None:
        self.ids: list[int] = []
        """Ordinals of the events that came."""
        self.next_build: set[bool] = set()
        """Whether an event was of the next build."""
        self._api = api
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # the thread ends with its stream

    def _listen(self) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not self._ended.is_set():
                found = find_credential(self._api, Path(os.environ["IPNEXT_CREDENTIALS_FILE"]))
                headers = {"authorization": f"Bearer {found.text if found else None}"}
                headers |= {"last-event-id": str(self.ids[-1])} if self.ids else {}
                with (
                    suppress(httpx.TransportError),
                    client.stream("GET", f"{self._api}/v1/events/stream", headers=headers) as answer,
                ):
                    for fields in messages(answer.iter_lines()):
                        self._take(fields)
                time.sleep(AGAIN_SECONDS)

    def _take(self, fields: Mapping[str, str]) -> None:
        if fields.get("event") == "event":
            self.next_build.add(ADDED in json.loads(fields["data"]))
            self.ids.append(int(fields["id"]))


def messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The messages of a stream of server-sent events, each as its fields; comments are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line and fields:
            yield fields
            fields = {}


def again(call: Any) -> Any:
    """The first answer of the API: it may be away between two builds."""

    def asked() -> Any:
        with suppress(Unavailable):
            return call()

    return until(asked, every_seconds=0.1)


def tells_the_field(url: str) -> bool:
    """Whether an answer has the next build's field."""
    return ADDED in httpx.get(url, trust_env=False, timeout=60).text


@contextmanager
def _client(url: str) -> Iterator[Client]:
    client = Client(url)
    yield client
    client.close()
