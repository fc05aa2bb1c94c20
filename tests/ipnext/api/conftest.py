"""Every answer of the API in these tests is one that its OpenAPI schema documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ipnext.model.access.rights import Role
from ipnext.settings import PlatformSettings
from tests.ipnext.api.browsers import chromium
from tests.ipnext.api.surface import HIDDEN, SHOWN, seed_two_owners
from tests.ipnext.conformance import Conformance
from tests.ipnext.conftest import Rooms, open_rooms

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


@pytest.fixture(scope="session")
def two_owners_database(
    tmp_path_factory: pytest.TempPathFactory, migrated: Path, room_settings: PlatformSettings
) -> Path:
    """The database of `two_owners`: each test gets a copy, which is quicker than to write it."""
    rooms = open_rooms(tmp_path_factory.mktemp("two-owners") / "rooms", migrated, room_settings)
    seed_two_owners(rooms)
    rooms.store.close()
    return rooms.directory / "ipnext.db"


@pytest.fixture
def two_owners(tmp_path: Path, two_owners_database: Path, room_settings: PlatformSettings) -> Iterator[Rooms]:
    """A model of owner `search`, one of owner `ads`, with a history each, and a plan in force."""
    found = open_rooms(tmp_path / "two-owners", two_owners_database, room_settings)
    found.admin_key = found.add_key("admin", Role.ADMIN)
    with found.store.read() as unit:
        for model in (SHOWN, HIDDEN):
            for deployment in unit.deployments(model):
                found.infrastructure.apply(deployment)
            for table in unit.routes(model):
                found.infrastructure.route(table)
    yield found
    found.store.close()


@pytest.fixture(scope="module")
def browser(platforms: None) -> Iterator[Any]:
    with chromium() as found:
        yield found
