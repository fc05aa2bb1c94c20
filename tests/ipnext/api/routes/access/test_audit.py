"""The audit over HTTP.

One entry for each request that changes something, refusals within bounds, no secret anywhere.
"""

import hashlib
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pydantic import TypeAdapter

from ipnext.access.keys import parse_key
from ipnext.api.authorization.audit_entries import (
    BURST,
    BURST_OF_ALL,
    EVERY_SECONDS,
    PRINCIPALS,
    Recorder,
    RefusalRecorder,
)
from ipnext.api.authorization.authentication import LOCAL
from ipnext.api.authorization.entry_budget import ENTRY_BYTES, EntryBudget
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.artifacts.signing import sign_digest, write_key_pair
from ipnext.errors import RateLimited, Unavailable
from ipnext.model.access.audit import AuditEntry
from ipnext.model.access.audit_chain import verify
from ipnext.model.access.rights import Principal, Role
from ipnext.model.api.resources import ListPage
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAnswer
from ipnext.model.registry.registry import GenerationState
from tests.ipnext.api.routes.models.registry.test_profiles import document as chat_document
from tests.ipnext.api.routes.models.registry.test_profiles import profile, source
from tests.ipnext.api.routes.regions.test_freezes import document as freeze_document
from tests.waiting import eventually

AUDIT = TypeAdapter(ListPage[AuditEntry])

Case = Callable[["World"], Awaitable[httpx.Response]]


class Agreeing(MemoryLifecycle):
    """An engine whose runs do what they are asked."""

    async def control(self, model, action, asked, *, change_id=None, update_id=None):  # noqa: ARG002
        self._answer()
        self.controls.append((model, action, asked))
        return ControlAnswer(model=model, action=action, change_id=change_id, message=f"{action.value} {asked.text}")


class World:
    """A platform with a fleet and the ranker; `mark` remembers the audit's head right before the request of a case."""

    def __init__(self, applied):
        self.http, self.rooms, self.applied = applied.http, applied.rooms, applied
        self.marked = 0

    def mark(self):
        self.marked = self.head()

    def head(self):
        with self.rooms.store.read() as unit:
            return unit.audit_head().sequence

    def since_mark(self):
        with self.rooms.store.read() as unit:
            return unit.audit_page(after=str(self.marked), oldest_first=True).items

    def has_sent(self):
        with self.rooms.store.read() as unit:
            return not unit.unsent_upstreams()

    def log_in(self):
        """The headers of a browser that has logged in."""
        key = self.rooms.add_key("admin", Role.ADMIN, kind="session", parent=parse_key(self.rooms.admin_key).id)
        return {"Cookie": f"ipnext_session_80={key}; ipnext_session_None={key}; ipnext_session_0={key}"}


@pytest.fixture
def rooms(rooms):
    rooms.lifecycle = Agreeing()
    return rooms


@pytest.fixture
async def world(world, request):
    """The world with a fleet and the ranker."""
    (await world.http.put("/v1/fleet", json=world.rooms.fleet_document())).raise_for_status()
    (await world.http.put("/v1/models/ranker", json=world.rooms.model_document())).raise_for_status()
    return World(world)


async def serve(w, salt="a"):
    (await w.applied.publish(salt)).raise_for_status()
    with w.rooms.store.read() as unit:
        number = unit.model("ranker").target_generation or len(unit.generations("ranker"))
    w.rooms.serve(number)


async def running(w):
    change = (await w.applied.publish("a")).json()["id"]
    with w.rooms.store.begin() as unit:
        unit.update_change(change, state=ChangeState.RUNNING)


async def publish(w):
    parts = {part: {"digest": await w.applied.upload(part.encode())} for part in ("sparse", "dense")}
    w.mark()
    return await w.http.post("/v1/models/ranker/publish", json={"parts": parts})


async def rollback(w):
    await serve(w, "a")
    await serve(w, "b")
    w.mark()
    return await w.http.post("/v1/models/ranker/rollback", json={})


async def repair(w):
    await serve(w)
    w.mark()
    return await w.http.post("/v1/models/ranker/repair", json={})


def steer(action):
    async def case(w):
        await running(w)
        w.mark()
        return await w.http.post(f"/v1/models/ranker/{action}", json={"reason": "by hand"})

    return case


def of_feed(action):
    """Ask for something of a source."""

    async def case(w):
        document = w.rooms.model_document()
        document["spec"]["sources"] = [{"name": "feed", "part": "dense", "push": {}}]
        (await w.http.put("/v1/models/ranker", json=document)).raise_for_status()
        path = "/v1/models/ranker/sources/feed"
        if action == "resume":
            (await w.http.post(f"{path}/pause", json={})).raise_for_status()
        body = {"digest": await w.applied.upload(b"x")} if action == "versions" else {"reason": "by hand"}
        await eventually(w.has_sent)  # a poll of a source that is about to be polled changes nothing
        w.mark()
        return await w.http.post(f"{path}/{action}", json=body)

    return case


def of_snapshot(action):
    """Hold, release or delete a snapshot that was refused."""

    async def case(w):
        await w.applied.publish("a")
        with w.rooms.store.begin("ranker") as unit:
            unit.set_generation_state("ranker", 1, GenerationState.REFUSED)
            unit.update_change(unit.changes("ranker")[0].id, state=ChangeState.REFUSED)
        await w.applied.publish("b")
        path = "/v1/models/ranker/snapshots/dense/1"
        if action == "release":
            (await w.http.put(f"{path}/hold", json={"reason": "by hand"})).raise_for_status()
        w.mark()
        if action == "hold":
            return await w.http.put(f"{path}/hold", json={"reason": "by hand"})
        return await w.http.delete(path if action == "delete" else f"{path}/hold")

    return case


async def put_blob(w):
    return await w.http.put(f"/v1/artifacts/blobs/{hashlib.sha256(b'x').hexdigest()}", content=b"x")


async def upload(w):
    w.mark()
    return await put_blob(w)


async def commit(w):
    manifest = w.rooms.snapshot_manifest(b"x")
    await put_blob(w)
    w.mark()
    return await w.http.post("/v1/artifacts/snapshots", json=manifest.model_dump(mode="json"))


async def sign(w):
    digest = await w.applied.upload(b"x")
    private = w.rooms.directory / "key.pem"
    write_key_pair(private, w.rooms.directory / "key.pub.pem")
    document = w.rooms.model_document()
    key = (w.rooms.directory / "key.pub.pem").read_text()
    document["spec"]["validation"] = {"signers": {"publicKeys": [key]}}
    (await w.http.put("/v1/models/ranker", json=document)).raise_for_status()
    w.mark()
    headers = {"content-type": "application/json"}
    path = f"/v1/artifacts/snapshots/{digest}/signature"
    return await w.http.put(path, content=sign_digest(digest, private).content, headers=headers)


async def put_profile(w):
    given = chat_document({"profile": True, "tokensPerSecond": 500}, latencyTarget={"ttftMs": 30})
    (await w.http.put("/v1/models/chat", json=given)).raise_for_status()
    with w.rooms.store.begin() as unit:
        unit.publish("chat", {"llm": source("a", "v")}, change_id="c")
    w.mark()
    return await w.http.put("/v1/models/chat/snapshots/llm/1/profiles", json=profile(100, 300))


def sent(method, path, body=None):
    async def case(w):
        w.mark()
        return await w.http.request(method, path, json=body)

    return case


async def apply_fleet(w):
    body = w.rooms.fleet_document()
    body["spec"]["supply"][0]["units"] = 9
    w.mark()
    return await w.http.put("/v1/fleet", json=body)


async def apply_model(w):
    w.mark()
    return await w.http.put("/v1/models/ranker", json=w.rooms.model_document(qps=20))


OWNER = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "search"}}


async def delete_owner(w):
    (await w.http.put("/v1/owners/ads", json=OWNER | {"metadata": {"name": "ads"}})).raise_for_status()
    w.mark()
    return await w.http.delete("/v1/owners/ads")


async def end_denial(w):
    (await w.http.put(f"/v1/denials/{'c' * 64}", json={"reason": "poisoned"})).raise_for_status()
    w.mark()
    return await w.http.delete(f"/v1/denials/{'c' * 64}")


async def lift_freeze(w):
    (await w.http.put("/v1/freezes/sale", json=freeze_document())).raise_for_status()
    w.mark()
    return await w.http.delete("/v1/freezes/sale?reason=sold%20out")


async def override(w):
    change = (await w.applied.publish("a")).json()["id"]
    w.mark()
    return await w.http.post(f"/v1/changes/{change}/override", json={"reason": "a fix"})


async def undrain(w):
    (await w.http.post("/v1/regions/eu/drain", json={})).raise_for_status()
    w.mark()
    return await w.http.post("/v1/regions/eu/return", json={"reason": "racks are back"})


async def revoke(w):
    made = (await w.http.post("/v1/keys", json={"name": "bot", "role": "viewer"})).json()
    w.mark()
    return await w.http.delete(f"/v1/keys/{made['id']}")


async def log_in(w):
    headers = {"Authorization": f"Bearer {w.rooms.ticket()}", "Sec-Fetch-Site": "same-origin"}
    w.mark()
    return await w.http.post("/v1/sessions", headers=headers)


async def log_out(w):
    headers = w.log_in() | {"Sec-Fetch-Site": "same-origin"}
    del w.http.headers["Authorization"]
    w.mark()
    answer = await w.http.delete("/v1/sessions/current", headers=headers)
    w.http.headers["Authorization"] = w.rooms.headers["Authorization"]
    return answer


async def revoke_role(world):
    made = await world.http.post("/v1/roles", json={"subject": "group:ml", "role": "viewer"})
    world.mark()
    return await world.http.delete(f"/v1/roles/{made.json()['id']}")


MUTATING: dict[str, tuple[Case, tuple[str, str, str, str]]] = {
    "PUT /v1/models/{name}": (apply_model, ("models.apply", "Model ranker", "ranker", "done")),
    "DELETE /v1/models/{name}": (
        sent("DELETE", "/v1/models/ranker"),
        ("models.retire", "Model ranker", "ranker", "done"),
    ),
    "POST /v1/models/{name}/publish": (publish, ("models.publish", "Model ranker", "ranker", "done")),
    "POST /v1/models/{name}/rollback": (rollback, ("models.rollback", "Model ranker", "ranker", "done")),
    "POST /v1/models/{name}/repair": (repair, ("models.repair", "Model ranker", "ranker", "done")),
    **{
        f"POST /v1/models/{{name}}/{action}": (steer(action), ("models.steer", "Model ranker", "ranker", "asked"))
        for action in ("pause", "resume", "approve", "promote", "abort")
    },
    **{
        f"POST /v1/models/{{name}}/sources/{{source}}/{verb}": (
            of_feed(verb),
            (action, "Model ranker", "ranker", "done"),
        )
        for verb, action in (
            *(("pause", "models.steer"), ("resume", "models.steer")),
            *(("poll", "models.publish"), ("versions", "models.publish")),
        )
    },
    "PUT /v1/models/{name}/snapshots/{part}/{number}/hold": (
        of_snapshot("hold"),
        ("models.steer", "Model ranker", "ranker", "done"),
    ),
    "DELETE /v1/models/{name}/snapshots/{part}/{number}/hold": (
        of_snapshot("release"),
        ("models.steer", "Model ranker", "ranker", "done"),
    ),
    "DELETE /v1/models/{name}/snapshots/{part}/{number}": (
        of_snapshot("delete"),
        ("models.publish", "Model ranker", "ranker", "done"),
    ),
    "PUT /v1/artifacts/blobs/{sha256}": (upload, ("artifacts.upload", "Blob", "", "asked")),
    "POST /v1/artifacts/snapshots": (commit, ("artifacts.upload", "Snapshot", "", "asked")),
    "POST /v1/artifacts/collect": (
        sent("POST", "/v1/artifacts/collect"),
        ("artifacts.collect", "Artifacts unnamed", "", "asked"),
    ),
    "PUT /v1/artifacts/snapshots/{digest}/signature": (sign, ("artifacts.upload", "Snapshot", "", "asked")),
    "PUT /v1/models/{name}/snapshots/{part}/{number}/profiles": (
        put_profile,
        ("models.profile", "Profile", "chat", "done"),
    ),
    "POST /v1/replans": (
        sent("POST", "/v1/replans", {"replanId": "r1"}),
        ("replans.ask", "Replan r1", "", "done"),
    ),
    "POST /v1/replans/steer": (
        sent("POST", "/v1/replans/steer", {"action": "pause"}),
        ("replans.ask", "Moves", "", "done"),
    ),
    "PUT /v1/fleet": (apply_fleet, ("fleet.apply", "Fleet", "", "done")),
    "PUT /v1/freezes/{name}": (
        sent("PUT", "/v1/freezes/sale", freeze_document()),
        ("freezes.change", "Freeze sale", "", "done"),
    ),
    "DELETE /v1/freezes/{name}": (lift_freeze, ("freezes.change", "Freeze sale", "", "done")),
    "PUT /v1/denials/{digest}": (
        sent("PUT", f"/v1/denials/{'c' * 64}", {"reason": "poisoned"}),
        ("denials.change", f"Denial {'c' * 64}", "", "done"),
    ),
    "DELETE /v1/denials/{digest}": (end_denial, ("denials.change", f"Denial {'c' * 64}", "", "done")),
    "PUT /v1/owners/{owner}": (
        sent("PUT", "/v1/owners/search", OWNER),
        ("owners.manage", "Owner search", "", "done"),
    ),
    "DELETE /v1/owners/{owner}": (delete_owner, ("owners.manage", "Owner ads", "", "done")),
    "POST /v1/changes/{change_id}/override": (override, ("models.override", "Change", "ranker", "done")),
    "POST /v1/regions/{region}/drain": (
        sent("POST", "/v1/regions/eu/drain", {"reason": "racks"}),
        ("regions.drain", "Region eu", "", "done"),
    ),
    "POST /v1/regions/{region}/return": (undrain, ("regions.drain", "Region eu", "", "done")),
    "POST /v1/keys": (
        sent("POST", "/v1/keys", {"name": "bot", "role": "viewer"}),
        ("keys.manage", "Key", "", "done"),
    ),
    "POST /v1/roles": (
        sent("POST", "/v1/roles", {"subject": "group:ml", "role": "viewer"}),
        ("roles.manage", "Role", "", "done"),
    ),
    "DELETE /v1/roles/{binding_id}": (revoke_role, ("roles.manage", "Role", "", "done")),
    "DELETE /v1/keys/{key_id}": (revoke, ("keys.manage", "Key", "", "done")),
    "POST /v1/sessions": (log_in, ("sessions.begin", "Session", "", "done")),
    "DELETE /v1/sessions/current": (log_out, ("sessions.end", "Session", "", "done")),
    "POST /v1/tickets": (sent("POST", "/v1/tickets"), ("tickets.create", "Ticket", "", "done")),
}
"""Operation -> a request of it, and action, object (or its kind), model and outcome of its entry."""

READING = frozenset({"POST /v1/artifacts/missing"})
"""Operations that change nothing although their method could."""


def mutating(schema):
    return {
        f"{method.upper()} {path}"
        for path, operations in schema["paths"].items()
        for method in operations
        if method not in {"get", "head", "options"}
    }


async def test_every_operation_that_changes_something_is_among_the_cases(rooms):
    wakes = {"POST /v1/webhooks/mlflow"}  # of no principal: it only causes a poll
    assert mutating(rooms.app().openapi()) == MUTATING.keys() | READING | wakes


@pytest.mark.parametrize("operation", MUTATING)
async def test_every_operation_that_changes_something_leaves_exactly_one_entry(world, operation):
    case, (action, about, model, outcome) = MUTATING[operation]
    answer = await case(world)
    assert answer.is_success, answer.text
    (entry,) = world.since_mark()
    assert (entry.action, entry.model or "", entry.outcome) == (action, model, outcome)
    assert about in {entry.object.text, entry.object.kind}
    assert (entry.operation, entry.source) == (operation, "127.0.0.1")
    assert entry.who.name == "admin"
    assert entry.policy
    itself = about.partition(" ")[2] if about.startswith("Owner ") else None
    assert entry.owner == {"ranker": "search", "chat": "o", "": itself}[model]


async def test_a_replan_that_is_cancelled_leaves_an_entry_before_the_engine_is_asked(world):
    world.mark()
    assert (await world.http.post("/v1/replans/steer", json={"action": "cancel", "reason": "stop"})).is_success
    (entry,) = world.since_mark()
    assert (entry.action, entry.object.kind, entry.outcome, entry.reason) == ("replans.ask", "Moves", "asked", "stop")


@pytest.mark.parametrize("operation", sorted(READING))
async def test_an_operation_that_only_reads_leaves_none(world, operation):
    method, path = operation.split()
    world.mark()
    assert (await world.http.request(method, path, json={"digests": []})).is_success
    assert world.since_mark() == ()


async def test_what_is_written_stands_in_the_entry_with_what_was_before(world):
    with world.rooms.store.read() as unit:
        before = unit.model("ranker").manifest.model_dump(mode="json", by_alias=True)
    await apply_model(world)
    (entry,) = world.since_mark()
    assert json.loads(entry.before) == before
    assert json.loads(entry.after)["spec"]["demand"][0]["qps"] == 20
    assert (entry.who.kind, entry.who.id) == ("key", parse_key(world.rooms.admin_key).id)


async def test_a_repeated_request_that_changes_nothing_leaves_none(world):
    body = world.rooms.model_document()
    world.mark()
    assert (await world.http.put("/v1/models/ranker", json=body)).is_success
    assert (await world.http.put("/v1/models/ranker?dryRun=true", json=world.rooms.model_document(qps=9))).is_success
    assert (await world.http.put("/v1/models/ranker?expectedVersion=7", json=body)).status_code == 409
    assert (await world.http.get("/v1/models")).is_success
    assert world.since_mark() == ()


async def test_who_it_was_said_to_be_for_stands_beside_who_it_was(world):
    world.mark()
    await world.http.post("/v1/replans", json={"replanId": "r"}, headers={"X-IPnext-User": "Zo%C3%AB%00"})
    (entry,) = world.since_mark()
    assert (entry.said, entry.who.name) == ("Zoë", "admin")


async def test_freezes_keep_who_overrode_them_and_the_audit_has_which(world):
    (await world.http.put("/v1/freezes/sale", json=freeze_document())).raise_for_status()
    await override(world)
    (entry,) = world.since_mark()
    assert (entry.reason, json.loads(entry.after)) == ("a fix", {"overrides": ["sale"]})
    with world.rooms.store.read() as unit:
        assert unit.freeze_override(entry.change_id).who == "key admin"


async def test_without_the_audit_nothing_is_done_outside_of_the_store(world, monkeypatch):
    def fails(*_):
        msg = "the database is full"
        raise Unavailable(msg)

    monkeypatch.setattr(world.rooms.store, "record", fails)
    asked = len(world.rooms.lifecycle.controls)
    assert (await world.http.post("/v1/models/ranker/pause", json={})).status_code == 503
    assert len(world.rooms.lifecycle.controls) == asked
    digest = hashlib.sha256(b"y").hexdigest()
    assert (await world.http.put(f"/v1/artifacts/blobs/{digest}", content=b"y")).status_code == 503
    assert world.rooms.artifacts.missing([digest]) == {digest}


async def test_an_endpoint_that_forgets_the_audit_has_an_entry_all_the_same(rooms):
    app = rooms.app()

    @app.post("/v1/forgetful/{thing}")
    async def forgetful(thing: str) -> str:
        return thing

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=rooms.headers) as http:
        assert (await http.post("/v1/forgetful/x")).is_success
    with rooms.store.read() as unit:
        (entry,) = unit.audit_page().items
    assert (entry.operation, entry.outcome, entry.who.name) == ("POST /v1/forgetful/{thing}", "done", "admin")


# the budget of entries


@pytest.fixture
def three_an_hour(rooms):
    rooms.settings = rooms.settings.model_copy(update={"audit_entries_per_hour": 3})


def of_team(rooms, name):
    return {"Authorization": f"Bearer {rooms.add_key(name, Role.PUBLISHER)}"}


async def test_one_key_causes_entries_within_its_budget_whatever_it_asks(three_an_hour, world):
    """Refused uploads and pauses count like changes; what leaves no entry does not. Another key has its own budget."""
    headers = of_team(world.rooms, "team")
    world.mark()
    pause = ("POST", "/v1/models/ranker/pause", {"json": {"reason": "r" * 900}})
    apply = ("PUT", "/v1/models/ranker", {"json": world.rooms.model_document(qps=33)})
    upload = ("PUT", f"/v1/artifacts/blobs/{'0' * 64}", {"content": b"of another digest"})
    answers = [
        await world.http.request(method, path, headers=headers, **more) for method, path, more in (pause, apply, upload)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    asked = len(world.rooms.lifecycle.controls)
    for method, path, more in (
        pause,
        upload,
        ("PUT", "/v1/models/ranker", {"json": world.rooms.model_document(qps=34)}),
    ):
        answer = await world.http.request(method, path, headers=headers, **more)
        assert (answer.status_code, answer.json()["code"]) == (429, "RateLimited")
        assert 1000 < int(answer.headers["retry-after"]) <= 1200
        assert "IPNEXT_AUDIT_ENTRIES_PER_HOUR" in answer.json()["message"]
    assert len(world.rooms.lifecycle.controls) == asked
    assert (await world.http.get("/v1/models/ranker", headers=headers)).json()["manifest"]["spec"]["demand"][0][
        "qps"
    ] == 33
    assert (await world.http.request(*apply[:2], headers=headers, **apply[2])).status_code == 200, "it changes nothing"
    assert len(world.since_mark()) == 3
    (await world.http.request(*pause[:2], headers=of_team(world.rooms, "other"), **pause[2])).raise_for_status()


def test_the_budget_of_entries_grows_again_and_large_entries_count_for_several():
    now = [0.0]
    budget = EntryBudget(10, clock=lambda: now[0])
    key = Principal(kind="key", id="k", name="k")
    session = Principal(kind="session", id="s", name="k", acts_for="k")
    budget.take(key, 9 * ENTRY_BYTES)
    budget.take(session, 0)
    with pytest.raises(RateLimited) as refused:
        budget.take(key, 100)
    assert refused.value.seconds == pytest.approx(360)
    now[0] += 361
    budget.take(key, 100)
    with pytest.raises(RateLimited):
        budget.take(session, 100)
    now[0] += 1e6
    budget.take(key, 100 * ENTRY_BYTES)  # larger than the budget: all of it
    with pytest.raises(RateLimited):
        budget.take(key, 0)


# refusals


def as_key(rooms, text):
    transport = httpx.ASGITransport(app=rooms.app())
    return httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers={"Authorization": f"Bearer {text}"}
    )


async def test_a_refusal_stands_with_who_what_and_the_policy(world):
    viewer = world.rooms.add_key("eve", Role.VIEWER)
    world.mark()
    async with as_key(world.rooms, viewer) as http:
        assert (await http.post("/v1/models/ranker/publish", json={"parts": {}})).status_code == 403
        assert (await http.get("/v1/audit")).status_code == 403
    entry, read = world.since_mark()
    assert (entry.outcome, entry.action, entry.who.name, entry.object.text) == (
        "refused",
        "models.publish",
        "eve",
        "Model ranker",
    )
    assert (entry.policy, entry.model, entry.owner) == ("publishers-change-models-of-their-owners", "ranker", "search")
    assert "may not publish snapshots" in entry.reason
    assert (read.action, read.operation) == ("audit.read", "GET /v1/audit")


@pytest.mark.parametrize("ended", [{"revoked_at": datetime.now(UTC)}, {"expires_at": datetime.now(UTC)}])
async def test_a_key_that_has_ended_leaves_a_refusal_and_one_that_is_not_known_none(world, ended):
    text = world.rooms.add_key("old", Role.ADMIN, **ended)
    world.mark()
    async with as_key(world.rooms, text) as http:
        assert (await http.get("/v1/models")).status_code == 401
    async with as_key(world.rooms, text[:-1] + ("A" if text[-1] != "A" else "B")) as http:
        assert (await http.get("/v1/models")).status_code == 401
    (entry,) = world.since_mark()
    assert (entry.outcome, entry.action, entry.who.name, entry.policy) == (
        "refused",
        "authenticate",
        "old",
        "credentials-end",
    )
    assert text not in entry.model_dump_json()


async def test_a_flood_of_refusals_leaves_as_many_entries_as_are_allowed_and_the_next_one_counts_the_rest(world):
    now = [0.0]
    recorder = Recorder(world.rooms.store, RefusalRecorder(lambda: now[0]))
    app = world.rooms.app()
    app.state.recorder = recorder
    viewer = world.rooms.add_key("eve", Role.VIEWER)
    headers = {"Authorization": f"Bearer {viewer}"}
    world.mark()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=headers
    ) as http:
        for _ in range(BURST + 15):
            assert (await http.post("/v1/replans", json={})).status_code == 403
        assert [entry.left_out for entry in world.since_mark()] == [None] * BURST
        now[0] += EVERY_SECONDS
        assert (await http.post("/v1/replans", json={})).status_code == 403
    assert [entry.left_out for entry in world.since_mark()] == [None] * BURST + [15]


def principal(number):
    return Principal(kind="user", id=f"u{number}", name=f"user-{number}")


def test_refusals_of_many_principals_are_bounded_together_and_those_left_out_are_not_forgotten():
    now = [0.0]
    refusals = RefusalRecorder(lambda: now[0])
    floods = 3 * PRINCIPALS
    taken = [refusals.take(principal(number)) for number in range(floods)]
    assert taken.count(None) == floods - BURST_OF_ALL
    assert refusals.pending == floods - BURST_OF_ALL
    now[0] += 1000.0
    told = refusals.take(principal(floods))
    assert told
    assert told + refusals.pending == floods - BURST_OF_ALL


async def test_a_process_that_ends_tells_what_it_left_out(rooms):
    rooms.seed("ranker")
    app = rooms.app()
    headers = {"Authorization": f"Bearer {rooms.add_key('eve', Role.VIEWER)}"}
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http,
    ):
        for _ in range(BURST + 3):
            assert (await http.delete("/v1/models/ranker")).status_code == 403
    with rooms.store.read() as unit:
        entries = unit.audit_page().items
    assert len(entries) == BURST + 1
    assert (entries[0].action, entries[0].left_out, entries[0].outcome) == ("refusals.left-out", 3, "refused")


async def test_a_refusal_that_can_not_be_recorded_stands_and_is_counted(world, monkeypatch):
    def fails(*_):
        msg = "the database is full"
        raise Unavailable(msg)

    recorder = Recorder(world.rooms.store)
    app = world.rooms.app()
    app.state.recorder = recorder
    viewer = world.rooms.add_key("eve", Role.VIEWER)
    monkeypatch.setattr(world.rooms.store, "record", fails)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {viewer}"},
    ) as http:
        assert (await http.post("/v1/replans", json={})).status_code == 403
    assert recorder.refusals.pending == 1


# reading


async def test_the_audit_is_listed_by_its_filters_newest_first_in_pages(world):
    await sent("POST", "/v1/replans", {"replanId": "r"})(world)
    get = world.http.get

    async def listed(query):
        return [entry["action"] for entry in (await get(f"/v1/audit?{query}")).json()["items"]]

    everything = ["replans.ask", "models.apply", "fleet.apply"]
    assert await listed("") == everything
    assert await listed("oldestFirst=true") == everything[::-1]
    assert await listed("action=models.apply") == ["models.apply"]
    assert await listed("action=models.*") == ["models.apply"]
    assert await listed("object=ranker") == ["models.apply"]
    assert await listed("who=admin") == everything
    assert await listed(f"who={parse_key(world.rooms.admin_key).id}") == everything
    assert await listed("who=eve") == []
    assert await listed("outcome=refused") == []
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert await listed(f"since={later}") == []
    first = (await get("/v1/audit?limit=2")).json()
    second = (await get(f"/v1/audit?limit=2&after={first['next']}")).json()
    assert [e["sequence"] for e in (*first["items"], *second["items"])] == [3, 2, 1]
    assert second.get("next") is None
    assert (await get("/v1/audit?since=2026-01-01T00:00:00")).json()["field"] == "since"
    assert (await get("/v1/audit?after=x")).json()["field"] == "after"


async def test_what_the_api_gives_out_is_verified_without_trust_in_it(world):
    entries = (await world.http.get("/v1/audit?oldestFirst=true")).json()["items"]
    head = (await world.http.get("/v1/audit/head")).json()
    assert head == {"sequence": 2, "hash": entries[-1]["hash"]}
    assert verify(entries).fault is None


async def test_no_secret_is_in_any_entry(world):
    texts = [world.rooms.admin_key, world.rooms.ticket()]
    texts.append((await world.http.post("/v1/keys", json={"name": "bot", "role": "viewer"})).json()["key"])
    texts.append((await world.http.post("/v1/tickets")).json()["ticket"])
    answer = await log_in(world)
    texts.append(answer.headers["set-cookie"].partition("=")[2].partition(";")[0])
    await world.http.delete(f"/v1/keys/{parse_key(texts[2]).id}")
    audit = (await world.http.get("/v1/audit")).text
    for text in texts:
        secret = parse_key(text).secret
        assert secret not in audit
        assert hashlib.sha256(secret.encode()).hexdigest() not in audit


async def test_without_authentication_everybody_is_anybody(rooms):
    rooms.settings = rooms.settings.model_copy(update={"authentication": "off"})
    rooms.seed("ranker")
    transport = httpx.ASGITransport(app=rooms.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.delete("/v1/models/ranker")).is_success
    with rooms.store.read() as unit:
        (entry,) = unit.audit_page().items
    assert (entry.who.kind, entry.who.name, entry.policy) == ("local", LOCAL.name, "authentication-is-off")


async def test_the_background_of_the_api_leaves_no_entry(world):
    """Submissions write on behalf of nobody: the change that caused them has its entry."""
    await publish(world)

    def submitted():
        with world.rooms.store.read() as unit:
            return not unit.unsubmitted_changes()

    await eventually(submitted)
    assert len(world.since_mark()) == 1


@pytest.mark.parametrize(
    "change",
    [
        "who_kind = 'ghost'",
        "outcome = 'nothing'",
        "at = 'never'",
        "at = '2026-11-28'",
        "left_out = 'many'",
        "left_out = 1.5",
        "hash = 'short'",
        "prev_hash = ''",
        "action = x'41'",
        "request_id = ''",
    ],
)
async def test_a_changed_row_is_read_and_named_whatever_stands_in_it(world, change):
    for number in range(4):
        (await world.http.put("/v1/models/ranker", json=world.rooms.model_document(qps=30 + number))).raise_for_status()
    last = world.head()
    with closing(sqlite3.connect(world.rooms.directory / "ipnext.db")) as database, database:
        database.execute("DROP TRIGGER audit_entries_no_update")
        database.execute(f"UPDATE audit_entries SET {change} WHERE sequence = 3")

    answer = await world.http.get("/v1/audit", params={"oldestFirst": True})
    assert answer.status_code == 200
    result = verify(answer.json()["items"])
    assert (result.fault.kind, result.fault.sequence, result.further) == ("changed", 3, ())
    assert [entry["sequence"] for entry in answer.json()["items"]] == list(range(1, last + 1))
    assert AUDIT.validate_python(answer.json()).items


async def test_a_changed_hash_of_the_newest_entry_keeps_nobody_from_working(world):
    last = world.head()
    with closing(sqlite3.connect(world.rooms.directory / "ipnext.db")) as database, database:
        database.execute("DROP TRIGGER audit_entries_no_update")
        database.execute("UPDATE audit_entries SET hash = 'short' WHERE sequence = ?", [last])
    assert (await world.http.get("/v1/audit/head")).json() == {"sequence": last, "hash": "short"}
    (await world.http.put("/v1/models/ranker", json=world.rooms.model_document(qps=30))).raise_for_status()
    found = verify((await world.http.get("/v1/audit", params={"oldestFirst": True})).json()["items"])
    assert (found.fault.sequence, found.further) == (last, ())
