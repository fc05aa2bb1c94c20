"""Authority counts when a change is recorded: not only when its request began, a slow body or a long wait before."""

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing

import pytest

from ipnext.access.keys import parse_key
from ipnext.api.requests import guarded_route
from ipnext.api.requests.turns import Turns
from ipnext.model.access.rights import Role
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.store.paging import Page
from tests.ipnext.api.routes.access.test_audit import MUTATING, Agreeing, World
from tests.ipnext.api.routes.models.registry.test_artifacts import sha

OF_RANKER = sorted(operation for operation, (_, (*_, model, _)) in MUTATING.items() if model == "ranker")
UNTOLD = (
    *('INSERT INTO "audit_entries"', 'INSERT INTO "api_keys"', 'INSERT INTO "models"'),
    'INSERT INTO "workflow_namespace"',  # the outbox writes it once it has begun
)
SENT = ('INSERT INTO "changes"', 'INSERT INTO "drains"', 'INSERT INTO "replans"', 'INSERT INTO "sources"')


class Interrupted(World):
    """A world in which something happens between the first check of the request after `mark` and its endpoint."""

    def __init__(self, applied, monkeypatch):
        super().__init__(applied)
        self.happens, self.is_armed, self.rows = None, False, None
        monkeypatch.setattr(guarded_route, "_prove_late", self._interrupt)

    def mark(self):
        super().mark()
        self.is_armed = True

    async def _interrupt(self, _request, _began):
        if self.is_armed:
            self.is_armed = False
            await asyncio.get_running_loop().run_in_executor(None, self.happens)  # not in the principal's context
            self.rows = self.dump()

    def dump(self):
        """All rows but those that the interruption changes. Of what the outbox updates meanwhile, the beginnings."""
        with closing(sqlite3.connect(self.rooms.store._url.database)) as file:
            lines = [line for line in file.iterdump() if not line.startswith(UNTOLD)]
        return [line[:50] if line.startswith(SENT) else line for line in lines]

    def revoke(self):
        with self.rooms.store.begin() as unit:
            unit.revoke_key(parse_key(self.rooms.admin_key).id)

    def move(self):
        document = self.rooms.model_document()
        document["metadata"]["owner"] = "ads"
        with self.rooms.store.begin() as unit:
            unit.put_model(ModelManifest.model_validate(document), expected_version=None)


@pytest.fixture
def rooms(rooms):
    rooms.lifecycle = Agreeing()
    return rooms


@pytest.fixture
async def interrupted(world, monkeypatch):
    (await world.http.put("/v1/fleet", json=world.rooms.fleet_document())).raise_for_status()
    (await world.http.put("/v1/models/ranker", json=world.rooms.model_document())).raise_for_status()
    return Interrupted(world, monkeypatch)


@pytest.mark.parametrize("operation", MUTATING)
async def test_a_key_that_is_revoked_during_a_request_changes_nothing(interrupted, operation):
    interrupted.happens = interrupted.revoke
    case, _ = MUTATING[operation]
    answer = await case(interrupted)
    assert (answer.status_code, answer.json()["code"]) == (401, "Unauthenticated"), answer.text
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert interrupted.dump() == interrupted.rows
    assert interrupted.rooms.lifecycle.controls == []
    assert {(entry.action, entry.outcome) for entry in interrupted.since_mark()} == {("authenticate", "refused")}


@pytest.mark.parametrize("operation", OF_RANKER)
async def test_a_model_that_gets_another_owner_during_a_request_is_left_alone(interrupted, operation, monkeypatch):
    key = interrupted.rooms.add_key("search-team", Role.OPERATOR, owner="search")
    mark = interrupted.mark

    def mark_as_the_team():
        mark()
        interrupted.http.headers["Authorization"] = f"Bearer {key}"

    monkeypatch.setattr(interrupted, "mark", mark_as_the_team)
    interrupted.happens = interrupted.move
    case, _ = MUTATING[operation]
    answer = await case(interrupted)
    assert (answer.status_code, answer.json()["code"]) == (404, "NotFound"), answer.text
    assert interrupted.dump() == interrupted.rows
    assert interrupted.rooms.lifecycle.controls == []
    assert interrupted.since_mark() == ()


async def test_an_entry_names_the_owner_that_the_model_has_by_then(interrupted):
    interrupted.happens = interrupted.move
    interrupted.mark()
    (await interrupted.http.post("/v1/models/ranker/pause", json={})).raise_for_status()
    (entry,) = interrupted.since_mark()
    assert entry.owner == "ads"


@pytest.mark.parametrize("at_the_end", [False, True])
async def test_an_upload_ends_with_the_key_that_sends_it(interrupted, monkeypatch, at_the_end):
    seconds = 60.0 if at_the_end else 0.02
    monkeypatch.setattr("ipnext.api.routes.models.registry.artifacts.PROVED_SECONDS", seconds)
    never = asyncio.Event()

    async def content():
        yield b"sent by "
        await asyncio.get_running_loop().run_in_executor(None, interrupted.revoke)
        if not at_the_end:
            await never.wait()
        yield b"nobody"

    whole = sha(b"sent by nobody")
    answer = await interrupted.http.put(f"/v1/artifacts/blobs/{whole}", content=content())
    assert (answer.status_code, answer.json()["code"]) == (401, "Unauthenticated")
    assert interrupted.rooms.artifacts.missing([whole]) == {whole}


async def test_what_waited_for_its_turn_is_read_by_who_may_read_it_then(world, monkeypatch):
    monkeypatch.setattr(guarded_route, "LATE_SECONDS", 0.0)
    key = world.rooms.add_key("team", Role.VIEWER)
    share = Turns.share

    def revoke():
        with world.rooms.store.begin() as unit:
            unit.revoke_key(parse_key(key).id)

    @asynccontextmanager
    async def share_late(self, holder):
        await asyncio.get_running_loop().run_in_executor(None, revoke)
        async with share(self, holder):
            yield

    headers = {"Authorization": f"Bearer {key}"}
    assert (await world.http.get("/v1/owners", headers=headers)).status_code == 200
    monkeypatch.setattr(Turns, "share", share_late)
    assert (await world.http.get("/v1/owners", headers=headers)).status_code == 401


async def test_what_was_read_for_long_is_answered_to_who_may_read_it_then(world, monkeypatch):
    monkeypatch.setattr(guarded_route, "LATE_SECONDS", 0.0)
    key = world.rooms.add_key("team", Role.VIEWER)

    def read_and_revoke(unit, **_):
        with world.rooms.store.begin() as other:
            other.revoke_key(parse_key(key).id)
        return Page((), None)

    monkeypatch.setattr("ipnext.store.repository.Repository.owner_page", read_and_revoke)
    answer = await world.http.get("/v1/owners", headers={"Authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "Unauthenticated")
