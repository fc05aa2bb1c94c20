"""Work in threads that clients share: none keeps that of others waiting. Large bodies are such work."""

import asyncio
import json
import threading

import pytest

from ipnext.api.requests import guarded_route, json_bodies
from ipnext.api.requests.json_bodies import LARGE, MANY
from ipnext.api.requests.turns import Turns
from tests.waiting import PATIENCE_SECONDS, eventually

PADDING = b" " * LARGE
AT_ONCE = 8
SHARE = 2


class Work:
    """Work that last until they are let go."""

    def __init__(self):
        self.begun, self._go_on = [], threading.Event()

    def __call__(self, name):
        self.begun.append(name)
        assert self._go_on.wait(PATIENCE_SECONDS)
        return name

    def let_go(self):
        self._go_on.set()


async def test_a_client_with_much_work_leaves_threads_to_others():
    turns, work = Turns(AT_ONCE), Work()
    greedy = [f"greedy {n}" for n in range(2 * AT_ONCE)]
    tasks = [asyncio.create_task(turns.run("greedy", work, name)) for name in greedy]
    await eventually(lambda: len(work.begun) == SHARE)
    others = [f"other {n}" for n in range(AT_ONCE - SHARE)]
    tasks += [asyncio.create_task(turns.run(name, work, name)) for name in others]
    await eventually(lambda: len(work.begun) == AT_ONCE)
    assert set(work.begun) == {*greedy[:SHARE], *others}
    work.let_go()
    assert await asyncio.gather(*tasks) == greedy + others
    assert not turns._holders, "a client that asks nothing is not remembered"


async def test_clients_without_authentication_share_all_threads():
    turns, work = Turns(AT_ONCE), Work()
    tasks = [asyncio.create_task(turns.run(None, work, n)) for n in range(AT_ONCE)]
    await eventually(lambda: len(work.begun) == AT_ONCE)
    work.let_go()
    await asyncio.gather(*tasks)


async def test_work_that_fails_ends_its_turn():
    turns = Turns(1)

    def fail():
        raise KeyError

    for _ in range(3):
        with pytest.raises(KeyError):
            await turns.run("one", fail)


@pytest.fixture
def threads(monkeypatch):
    """The threads in which bodies were validated before FastAPI saw them."""
    found, validated = [], guarded_route.validate_body

    def noted(model, value):
        found.append(threading.get_ident())
        return validated(model, value)

    monkeypatch.setattr(guarded_route, "validate_body", noted)
    return found


async def commit(world, document, *, padding=PADDING, kind="application/json"):
    content = document.model_dump_json().encode() if not isinstance(document, bytes) else document
    return await world.http.post("/v1/artifacts/snapshots", content=content + padding, headers={"content-type": kind})


async def test_a_large_body_is_validated_outside_of_the_event_loop(world, threads):
    manifest = world.rooms.snapshot_manifest(b"w")
    await world.upload(b"w")
    large, small = await commit(world, manifest), await commit(world, manifest, padding=b"")
    assert (large.status_code, large.json()) == (201, small.json())
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_a_short_body_of_many_values_is_checked_outside_of_the_event_loop(world, threads, monkeypatch):
    """What it costs follows from its values: 64 KiB have ten thousands of them, or one."""
    checked, check = [], json_bodies.check_json
    monkeypatch.setattr(json_bodies, "check_json", lambda body: (checked.append(threading.get_ident()), check(body))[1])
    refusals = {}
    for count in (MANY // 4, MANY):
        content = json.dumps({"files": [{}] * count}).encode()
        assert len(content) < LARGE
        refused = await commit(world, content, padding=b"")
        refusals[count] = refused.status_code, refused.json()
    few, many = checked
    assert few == threading.get_ident()
    assert many != threading.get_ident()
    assert len(threads) == 1, "and validated there"
    assert threads[0] != threading.get_ident()
    assert refusals[MANY // 4] == refusals[MANY]
    assert refusals[MANY][0] == 400


@pytest.mark.parametrize(
    "body", [b'{"engine": 1}', b'{"files": [{"path": 7}], "wrong": 1}', b"[]", b"null", b"{nothing", b"\xff"]
)
async def test_a_large_body_is_refused_in_the_words_for_a_small_one(world, body):
    large, small = await commit(world, body), await commit(world, body, padding=b"")
    assert (large.status_code, large.json()) == (small.status_code, small.json())
    assert large.status_code == 400


async def test_a_large_body_of_another_type_is_taken_for_none(world, threads):
    refused = await commit(world, b'{"engine": 1}', kind="text/plain")
    assert "content-type: application/json" in refused.json()["message"]
    assert not threads


async def test_a_client_with_many_requests_leaves_threads_of_endpoints_to_others():
    turns, order, going = Turns(AT_ONCE), [], asyncio.Event()

    async def request(holder):
        async with turns.share(holder):
            order.append(holder)
            await going.wait()

    tasks = [asyncio.create_task(request("greedy")) for _ in range(AT_ONCE)]
    tasks += [asyncio.create_task(request("other")), asyncio.create_task(request(None))]
    await eventually(lambda: "other" in order and None in order)
    assert order.count("greedy") == SHARE
    going.set()
    await asyncio.gather(*tasks)
    assert order.count("greedy") == AT_ONCE


async def test_endpoints_in_threads_wait_for_the_share_of_their_client(world, monkeypatch):
    shares, share = [], Turns.share

    def noted(turns, holder):
        shares.append(holder)
        return share(turns, holder)

    monkeypatch.setattr(Turns, "share", noted)
    await world.http.get("/v1/fleet")
    assert len(shares) == 1
    assert shares[0] is not None
