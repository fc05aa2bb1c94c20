"""Every answer of the API in these tests is one that its OpenAPI schema documents."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.ipnext.api.browsers import chromium
from tests.ipnext.api.surface import seed_two_owners
from tests.ipnext.conformance import Conformance

_CONFORMANCE = pytest.StashKey[Conformance]()


@pytest.fixture(autouse=True)
def _answers_as_documented(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Judge what applications answer to clients in the test's process; streams of events are not judged."""
    faults: list[str] = []
    ask = httpx.ASGITransport.handle_async_request
    stash = request.config.stash

    async def asked(self: Any, asking: httpx.Request) -> httpx.Response:
        answer = await ask(self, asking)
        if isinstance(self.app, FastAPI) and not answer.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.aread()
            if _CONFORMANCE not in stash:
                stash[_CONFORMANCE] = Conformance(self.app)
            faults.extend(stash[_CONFORMANCE].faults(asking, answer))
        return answer

    monkeypatch.setattr(httpx.ASGITransport, "handle_async_request", asked)
    yield
    assert not faults, "\n".join(faults)


@pytest.fixture
def two_owners(rooms: Any) -> Any:
    """A model of owner `search`, one of owner `ads`, with a history each, and a plan in force."""
    seed_two_owners(rooms)
    return rooms


@pytest.fixture(scope="module")
def browser(platforms: None) -> Iterator[Any]:
    with chromium() as found:
        yield found
