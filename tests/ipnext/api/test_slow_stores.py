"""A slow artifact store or region keeps no endpoint waiting that does not need it, and no client those of others."""

import ast
import asyncio
import inspect
import textwrap
import threading

import pytest

from ipnext.api.requests.slots import SHARE
from ipnext.api.routes.models import logs
from ipnext.api.routes.models.registry import artifacts
from ipnext.model.access.rights import Role
from ipnext.model.api.resources import MOST_ASKED
from tests.waiting import PATIENCE_SECONDS, eventually

SLOW = {"artifacts", "infrastructure"}


@pytest.fixture
def gate():
    """Slow calls end once it is opened."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def slow_calls(world, monkeypatch, gate):
    """The calls of the artifact store and of regions that have begun; none ends before the gate opens."""
    begun = []

    def slow(target, name, real):

        def call(*given, **named):
            begun.append(given)
            assert gate.wait(PATIENCE_SECONDS)
            return real(*given, **named)

        monkeypatch.setattr(target, name, call, raising=False)

    for name in ("missing", "check_whole"):
        slow(world.rooms.artifacts, name, getattr(world.rooms.artifacts, name))
    slow(world.rooms.infrastructure, "logs", lambda *_: ())
    return begun


def ask_missing(world, digest, **options):
    return world.http.post("/v1/artifacts/missing", json={"digests": [digest * 64]}, **options)


def commit(world, content, **options):
    manifest = world.rooms.snapshot_manifest(content.encode())
    return world.http.post("/v1/artifacts/snapshots", json=manifest.model_dump(mode="json"), **options)


def read_logs(world, _, **options):
    return world.http.get("/v1/models/ranker/logs", **options)


@pytest.mark.parametrize(
    ("ask", "at_once"),
    [(ask_missing, artifacts.LOOKED_AT_ONCE), (commit, artifacts.LOOKED_AT_ONCE), (read_logs, logs.READ_AT_ONCE)],
)
async def test_a_client_with_many_slow_requests_keeps_no_other_one_waiting(applied, slow_calls, gate, ask, at_once):
    other = {"Authorization": f"Bearer {applied.rooms.add_key('other', Role.PUBLISHER)}"}
    share = at_once // SHARE
    asked = [asyncio.create_task(ask(applied, "a")) for _ in range(60)]
    await eventually(lambda: len(slow_calls) == share)
    assert (await applied.http.get("/v1/models/ranker")).status_code == 200
    asked.append(asyncio.create_task(ask(applied, "b", headers=other)))
    await eventually(lambda: len(slow_calls) == share + 1)
    assert not any(task.done() for task in asked)
    gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*asked)} <= {200, 422, 404}


async def test_a_query_of_too_many_digests_is_refused(world):
    digests = [f"{n:064x}" for n in range(MOST_ASKED)]
    answer = await world.http.post("/v1/artifacts/missing", json={"digests": digests})
    assert len(answer.json()["missing"]) == MOST_ASKED
    refused = await world.http.post("/v1/artifacts/missing", json={"digests": [*digests, "f" * 64]})
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (400, "InvalidInput", "digests")
    assert f"{MOST_ASKED + 1}" in refused.json()["message"]
    assert f"at most {MOST_ASKED}" in refused.json()["message"]


async def test_a_digest_that_is_asked_many_times_is_looked_for_once(world, monkeypatch):
    asked = []
    monkeypatch.setattr(world.rooms.artifacts, "missing", lambda digests: asked.extend(digests) or frozenset())
    await world.http.post("/v1/artifacts/missing", json={"digests": ["a" * 64] * 20})
    assert asked.count("a" * 64) <= 2


def test_no_endpoint_calls_a_store_or_a_region_in_the_threads_of_all(world):
    """FastAPI executes a plain `def` endpoint in one of 40 threads that all endpoints share."""
    found = [
        each.dependant.call
        for route in world.rooms.app().routes
        for each in getattr(route, "effective_route_contexts", list)()
        if getattr(each, "dependant", None)
    ]
    plain = [endpoint for endpoint in found if not inspect.iscoroutinefunction(endpoint)]
    assert len(plain) > 20
    named = {endpoint.__qualname__: attributes(endpoint) for endpoint in plain}
    assert not {name: used for name, used in named.items() if used & SLOW}


def attributes(function):
    """Names of the attributes that a function reads of `rooms`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rooms"
    }
