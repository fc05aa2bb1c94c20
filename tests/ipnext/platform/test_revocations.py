"""How far a revocation has come.

The answer of the API, the SDK and the CLI names the regions that may still take the key.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from ipnext.access.keys import parse_key
from ipnext.cli import app
from ipnext.client import Client
from ipnext.errors import DeadlineExceeded, NotFound, Unavailable
from ipnext.model.access.rights import Role
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.platform.access.lists import CHECK_SECONDS, AccessPublisher
from tests.waiting import PATIENCE_SECONDS


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Regions:
    """The infrastructure, and the regions whose agents take lists that their routers do not go by."""

    def __init__(self, real):
        self.real, self.stuck = real, set()

    def regions(self):
        return self.real.regions()

    def put_access(self, region, access):
        return self.real.access_revision(region) if region in self.stuck else self.real.put_access(region, access)

    def access_revision(self, region):
        return self.real.access_revision(region)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def regions(rooms):
    return Regions(rooms.infrastructure)


@pytest.fixture
def publisher(rooms, regions, clock):
    """A publisher of another process than the API, that has sent the first list.

    Both regions have a model that needs keys.
    """
    document = rooms.model_document()
    document["spec"]["access"] = {"predictions": "authenticated"}
    document["spec"]["demand"] = [{"region": region, "qps": 1} for region in ("eu", "us")]
    with rooms.store.begin() as unit:
        unit.put_model(ModelManifest.model_validate(document), expected_version=None)
    publisher = AccessPublisher(rooms.store, regions, clock=clock)
    look(publisher)
    yield publisher
    publisher.close()


@pytest.fixture
def client(live):
    with Client(live.url) as client:
        yield client


@pytest.fixture
def key(rooms, publisher):
    """Id of a key that both regions know."""
    found = parse_key(rooms.add_key("leaver", Role.CALLER)).id
    look(publisher)
    return found


def look(publisher):
    for sent in publisher.look():
        sent.result()


def test_right_after_a_revocation_every_region_may_still_take_the_key(client, key, publisher):
    assert client.revoke_key(key).regions_behind == ("eu", "us")
    look(publisher)
    assert client.revoke_key(key).regions_behind == ()


def test_a_region_that_does_not_answer_or_does_not_go_by_its_list_is_named(client, key, publisher, rooms, regions):
    rooms.infrastructure.cut("us")
    regions.stuck.add("eu")
    client.revoke_key(key)
    look(publisher)
    assert client.revoke_key(key).regions_behind == ("eu", "us")
    regions.stuck.clear()
    look(publisher)
    assert client.revoke_key(key).regions_behind == ("us",)
    rooms.infrastructure.mend("us")
    look(publisher)
    assert client.revoke_key(key).regions_behind == ()


def test_a_region_that_is_behind_in_later_revocations_only_is_not_named(client, key, publisher, rooms):
    client.revoke_key(key)
    look(publisher)
    rooms.infrastructure.cut("us")
    later = parse_key(rooms.add_key("next", Role.CALLER)).id
    client.revoke_key(later)
    look(publisher)
    assert client.revoke_key(key).regions_behind == ()
    assert client.revoke_key(later).regions_behind == ("us",)


def test_a_region_that_has_lost_its_list_is_no_evidence(client, key, publisher, rooms):
    """It has had the newest list; what it goes by is asked again before a revocation is said to be in force there."""
    rooms.infrastructure._access["us"] = rooms.infrastructure.access("us").model_copy(
        update={"revision": 40, "digest": "other"}
    )
    client.revoke_key(key)
    look(publisher)
    assert client.revoke_key(key).regions_behind == ("us",)


def test_a_publisher_that_starts_later_finds_out_and_writes_once(client, key, publisher, rooms, regions, clock):
    client.revoke_key(key)
    publisher.close()
    assert client.revoke_key(key).regions_behind == ("eu", "us")
    second = AccessPublisher(rooms.store, regions, clock=clock)
    try:
        look(second)
        assert client.revoke_key(key).regions_behind == ()
        look(second)
        mark = rooms.store.revision()
        clock.now += CHECK_SECONDS
        look(second)
        assert rooms.store.revision() == mark
    finally:
        second.close()


def test_a_database_that_is_away_at_the_answer_gets_it_later(client, key, publisher, rooms, monkeypatch):
    client.revoke_key(key)
    publisher._refresh()
    with monkeypatch.context() as patch:
        patch.setattr(rooms.store, "begin", away)
        look(publisher)
    assert client.revoke_key(key).regions_behind == ("eu", "us")
    look(publisher)
    assert client.revoke_key(key).regions_behind == ()


def away(*_):
    msg = "down"
    raise Unavailable(msg)


def test_a_region_that_never_needed_the_key_is_not_behind(client, publisher, rooms):
    """Its list stays the same. It is asked for it, nevertheless."""
    key = parse_key(rooms.add_key("reader", Role.VIEWER, region="eu")).id
    look(publisher)
    before = rooms.infrastructure.access("us")
    client.revoke_key(key)
    look(publisher)
    assert rooms.infrastructure.access("us") == before
    assert client.revoke_key(key).regions_behind == ()


def test_a_session_is_in_no_list(client, rooms, publisher):
    parent = parse_key(rooms.admin_key).id
    session = parse_key(rooms.add_key("s", Role.ADMIN, kind="session", parent=parent)).id
    assert client.revoke_key(session).regions_behind == ()


def test_a_key_that_is_not_revoked_has_no_revocation(client, key):
    for unknown in (key, "a" * 16):
        with pytest.raises(NotFound, match=f"no revoked key has the id '{unknown}'"):
            client.wait_revoked(unknown)


def test_the_sdk_waits_for_the_last_region_and_names_it_when_the_time_is_over(client, key, publisher, rooms):
    rooms.infrastructure.cut("us")
    with pytest.raises(DeadlineExceeded, match=f"key {key} is revoked, and after 0 s may .* regions: eu, us$"):
        client.revoke_key(key, wait=True, timeout_seconds=0)
    look(publisher)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_revoked, key, PATIENCE_SECONDS)
        rooms.infrastructure.mend("us")
        look(publisher)
        assert waiting.result().regions_behind == ()


def test_the_command_line_names_the_regions_and_fails_if_it_was_to_wait(live, key, publisher, rooms, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", live.url)

    def run(*arguments):
        return CliRunner().invoke(app, ["keys", "revoke", *arguments])

    rooms.infrastructure.cut("us")
    first = run(key)
    assert (first.exit_code, first.stdout) == (0, f"key {key} (leaver) is revoked\n")
    assert "may still take it: eu, us; --wait" in first.stderr
    look(publisher)
    late = run(key, "--wait", "--timeout", "0")
    assert (late.exit_code, late.stdout) == (1, "")
    assert late.stderr.strip().endswith("after 0 s may still be taken in these regions: us")
    rooms.infrastructure.mend("us")
    look(publisher)
    done = run(key, "--wait", "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)["regionsBehind"], done.stderr) == (0, [], "")
